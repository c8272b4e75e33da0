"""The patcher of a model: the fastest mode that agrees with plain passes, patched passes with a memory, and generation.

A patch acts on the prompt alone; what is generated after it is the model's own.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel, relative_deviation
from lensbench.models.memory import Memo
from lensbench.models.patching.generation import TRIAL_ROWS, Generation, Sharing, deviation, fastest_sharing
from lensbench.models.patching.passes import MODES, Mode, PatchedPass, Prompt, agreeing, trial_vectors, try_each
from lensbench.models.proofs import proved
from lensbench.models.token_scores import TokenScores, score_in_steps, score_logits

LOG = logging.getLogger("lensbench")
# How many prompts are kept, whatever they take; more only in a share of the memory of a batch. There is one prompt for
# each item where items' own texts are patched.
PROMPTS, SHARE_KEPT = 32, 4


class RowMemory:
    """The answers to the last calls.

    Rows are made unique and sorted by content, so that a call which only permutes the rows of an earlier one (a
    shuffled control) forms the same batches: its answer comes from memory with the same bytes as a recomputation
    would have.
    """

    def __init__(self, calls: int = 64) -> None:
        self._kept = Memo(calls)

    def answer(
        self, question: object, rows: Float[Tensor, "row column"], compute: Callable[[Tensor], TokenScores]
    ) -> TokenScores:
        """Return `compute` of the distinct rows, spread over all of them."""
        unique, place = torch.unique(rows, dim=0, return_inverse=True)
        digest = hashlib.sha256(repr((question, tuple(unique.shape), unique.dtype)).encode())
        digest.update(unique.cpu().contiguous().view(torch.uint8).numpy().data)
        return self._kept.get_or_compute(digest.hexdigest(), lambda: compute(unique)).rows(place)


def mode_deviation(passes: PatchedPass, layers: Sequence[int] | None = None) -> float:
    """Return how far the logits of patched passes lie from those of plain ones, relative to the largest.

    One row a target layer, by default all of them, of a fixed random vector on the scale of the prompt's own residuals
    there.

    Raises:
        ReplayError: the model defeats the mode.
    """
    model, prompt = passes.model, passes.prompt
    at = list(range(model.n_layers + 1)) if layers is None else list(layers)
    vectors, plain = trial_vectors(model, prompt)[at], PatchedPass(model, prompt, "plain")
    parts = [slice(begin, begin + TRIAL_ROWS) for begin in range(0, len(at), TRIAL_ROWS)]
    reference = model.unembed(torch.cat([plain.run(vectors[part], at[part]) for part in parts]))
    return relative_deviation(model.unembed(passes.run(vectors, at)), reference)


def some_layers(model: LanguageModel) -> tuple[int, int]:
    """Return the target layers at which a mode that was proved in an earlier run is tried again: one deep, one not."""
    return 1, model.n_layers // 2 + 1


def try_modes(model: LanguageModel, prompt: Prompt) -> Iterator[tuple[Mode, float, str]]:
    """Try the modes that share something: how far each lies from plain passes, or infinity and why it is impossible."""
    return try_each(MODES[:-1], lambda mode: mode_deviation(PatchedPass(model, prompt, mode)))


def fastest_mode(model: LanguageModel, prompt: Prompt) -> Mode:
    """Return the mode that shares most and agrees with plain passes on this model and prompt."""
    LOG.info("%s: trying what patched passes may share", model.name)
    return next(agreeing(model, try_modes(model, prompt), "patched pass"), "plain")


class Patcher:
    """Patched passes of one model: proves the mode once, keeps prompts, and computes identical rows once."""

    def __init__(self, model: LanguageModel, mode: Mode | None = None) -> None:
        self.model = model
        self.mode = mode
        self.sharing: Sharing | None = None
        self._passes = Memo()
        self._memory = RowMemory()

    def score(
        self,
        prompt: Prompt,
        vectors: Float[Tensor, "row width"],
        target_layers: Int[Tensor, " row"],
        token_ids: Sequence[int],
    ) -> TokenScores:
        """Patch each row's vector, or vectors, at its target layer and score the asked tokens as the next word.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)

        def compute(rows: Tensor) -> TokenScores:
            final = passes.final_residuals(rows[:, 1:], rows[:, 0].round().long())
            return self.model.score_tokens(final, token_ids)

        keyed = _keyed(vectors, target_layers)
        return self._memory.answer((prompt, tuple(token_ids)), keyed, compute)

    def score_answers(
        self,
        prompt: Prompt,
        vectors: Float[Tensor, "row width"],
        target_layers: Int[Tensor, " row"],
        answers: Sequence[tuple[int, ...]],
    ) -> TokenScores:
        """Patch each row, and score answers of one or several tokens each as what comes next.

        Args:
            prompt: the prompt.
            vectors: what is written, one row a pass.
            target_layers: where.
            answers: the tokens of each answer; see `Tokens.telling_ids`.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """

        def score(begun: tuple[int, ...], asked: Sequence[int]) -> TokenScores:
            after = replace(prompt, ids=prompt.ids + begun)
            return self.score(after, vectors, target_layers, asked)

        passes = self._pass(prompt, vectors)
        if all(len(ids) == 1 for ids in answers) or self._generating(passes).sharing != "shared":
            return score_in_steps(answers, score)
        rows = _keyed(vectors, target_layers)
        return self._memory.answer(
            (prompt, tuple(answers)), rows, lambda unique: self._stepwise(passes, unique, answers)
        )

    def _stepwise(
        self, passes: PatchedPass, rows: Float[Tensor, "row column"], answers: Sequence[tuple[int, ...]]
    ) -> TokenScores:
        """Score answers after one run of the prompt: their first tokens go through the model alone."""
        generation = self._generating(passes)
        layers = rows[:, 0].round().long().tolist()  # sorted: they are the first column

        def run(batch: slice) -> TokenScores:
            given = rows[batch, 1:].to(self.model.device, self.model.dtype)
            state = generation.begin(given, layers[batch])

            def score(begun: tuple[int, ...], asked: Sequence[int]) -> TokenScores:
                wanted = torch.tensor(asked, device=self.model.device)
                return TokenScores(*score_logits(generation.after(state, begun), wanted, 0))

            return score_in_steps(answers, score)

        longest = max(map(len, answers))
        parts = self.model.budget.in_batches(len(rows), lambda _: generation.rows_per_batch(longest), run)
        return TokenScores.concat(parts)

    def generate(
        self,
        prompt: Prompt,
        vectors: Float[Tensor, "row width"],
        target_layers: Int[Tensor, " row"],
        steps: int,
        seed: int | None = None,
    ) -> tuple[str, ...]:
        """Patch each vector at its target layer and generate at most `steps` tokens: the likeliest, or by chance.

        The patch acts on the prompt alone. A text ends before its first end-of-text token. Identical rows are
        generated once.

        Args:
            prompt: the prompt.
            vectors: what is written, one row a pass.
            target_layers: where.
            steps: how many tokens, at most.
            seed: tokens are drawn at temperature 1 with it; None takes the likeliest.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        generation = self._generating(self._pass(prompt, vectors))
        rows, place = torch.unique(_keyed(vectors, target_layers), dim=0, return_inverse=True)
        layers = rows[:, 0].round().long().tolist()  # sorted: they are the first column

        def run(batch: slice) -> Tensor:
            given = rows[batch, 1:].to(self.model.device, self.model.dtype)
            draw = None if seed is None else torch.Generator().manual_seed(seed + batch.start)
            return generation.generate(given, layers[batch], steps, draw)

        tokens = torch.cat(self.model.budget.in_batches(len(rows), lambda _: generation.rows_per_batch(steps), run))
        texts = [self.model.tokens.decode(row, self.model.end_ids) for row in tokens.tolist()]
        return tuple(texts[i] for i in place.tolist())

    def _generating(self, passes: PatchedPass) -> Generation:
        if self.sharing is None:
            self.sharing = self._proved_sharing(passes)
        return Generation(passes, self.sharing)

    def _proved_sharing(self, passes: PatchedPass) -> Sharing:
        model = self.model

        def holds(sharing: Sharing) -> bool:
            tried = try_each([sharing], lambda one: deviation(passes, one, some_layers(model)))
            return sharing == "plain" or bool(list(agreeing(model, tried, "generation")))

        return proved(model, f"generation {passes.mode}", lambda: fastest_sharing(passes), holds)

    def _pass(self, prompt: Prompt, vectors: Tensor) -> PatchedPass:
        if vectors.shape[1] not in (self.model.d_model, self.model.d_model * len(prompt.positions)):
            raise LensbenchError(
                f"a vector of width {vectors.shape[1]} cannot be patched into {self.model.name} (width "
                f"{self.model.d_model}); choose a verbalizer of the target's width"
            )
        mode = self.proved_mode(prompt)
        while len(self._passes) > PROMPTS and self._kept_bytes > self.model.budget.bytes // SHARE_KEPT:
            self._passes.popitem(last=False)
        return self._passes.get_or_compute(prompt, lambda: PatchedPass(self.model, prompt, mode))

    @property
    def _kept_bytes(self) -> int:
        return sum(one.nbytes for one in self._passes.values())

    def proved_mode(self, prompt: Prompt) -> Mode:
        """Return the mode of the model's patched passes; proved on this prompt, where it has not been before."""
        if self.mode is None:
            model = self.model

            def holds(mode: Mode) -> bool:
                passes = PatchedPass(model, prompt, mode)
                tried = try_each([mode], lambda _: mode_deviation(passes, some_layers(model)))
                agrees = mode == "plain" or bool(list(agreeing(model, tried, "patched pass")))
                if agrees:  # what it has recorded of the prompt serves the passes that follow
                    self._passes[prompt] = passes
                return agrees

            mode: Mode = proved(model, "patched_pass", lambda: fastest_mode(model, prompt), holds)
            self.mode = mode
        return self.mode


def _keyed(vectors: Tensor, target_layers: Tensor) -> Tensor:
    """Put each row's target layer before its vector: rows that are equal in both are computed once."""
    return torch.cat([target_layers[:, None].to(vectors), vectors], dim=1)


def patcher_of(model: LanguageModel) -> Patcher:
    """Return the one patcher of a model, so that its proof and its memory are shared by all methods."""
    return model.cache.get_or_compute("patcher", lambda: Patcher(model))
