"""The patcher of a model: the fastest mode that agrees with plain passes, patched passes with a memory, and generation.

A patch acts on the prompt alone; what is generated after it is the model's own.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel, relative_deviation
from lensbench.models.memory import Memo, bytes_per_row
from lensbench.models.patching.passes import MODES, Mode, PatchedPass, Prompt, agreeing, trial_vectors, try_each
from lensbench.models.proofs import proved
from lensbench.models.replay import KeysValues, extended, recording
from lensbench.models.token_scores import TokenScores, score_in_steps

LOG = logging.getLogger("lensbench")
# So many rows of a plain pass are run at once while something is tried.
TRIAL_ROWS = 8
# How many prompts are kept: methods that patch items' own sources have one an item.
PROMPTS = 32


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


def mode_deviation(model: LanguageModel, prompt: Prompt, mode: Mode, layers: Sequence[int] | None = None) -> float:
    """Return how far a mode's logits lie from plain patched passes, relative to the largest logit.

    One row a target layer, by default all of them, of a fixed random vector on the scale of the prompt's own residuals
    there.

    Raises:
        ReplayError: the model defeats the mode.
    """
    at = list(range(model.n_layers + 1)) if layers is None else list(layers)
    vectors, plain = trial_vectors(model, prompt)[at], PatchedPass(model, prompt, "plain")
    parts = [slice(begin, begin + TRIAL_ROWS) for begin in range(0, len(at), TRIAL_ROWS)]
    reference = model.unembed(torch.cat([plain.run(vectors[part], at[part]) for part in parts]))
    other = model.unembed(PatchedPass(model, prompt, mode).run(vectors, at))
    return relative_deviation(other, reference)


def some_layers(model: LanguageModel) -> tuple[int, int]:
    """Return the target layers at which a mode that was proved in an earlier run is tried again: one deep, one not."""
    return 1, model.n_layers // 2 + 1


def try_modes(model: LanguageModel, prompt: Prompt) -> Iterator[tuple[Mode, float, str]]:
    """Try the modes that share something: how far each lies from plain passes, or infinity and why it is impossible."""
    return try_each(MODES[:-1], lambda mode: mode_deviation(model, prompt, mode))


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
        self._passes = Memo(PROMPTS)
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

        return score_in_steps(answers, score)

    def generate(
        self, prompt: Prompt, vectors: Float[Tensor, "row width"], target_layers: Int[Tensor, " row"], steps: int
    ) -> tuple[str, ...]:
        """Patch each vector at its target layer and generate at most `steps` tokens, greedily.

        The patch acts on the prompt alone. A text ends before its first end-of-text token. Identical rows are
        generated once.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)
        if self.sharing is None:
            self.sharing = self._proved_sharing(passes)
        generation = Generation(passes, self.sharing)
        rows, place = torch.unique(_keyed(vectors, target_layers), dim=0, return_inverse=True)
        layers = rows[:, 0].round().long().tolist()  # sorted: they are the first column

        def run(batch: slice) -> Tensor:
            given = rows[batch, 1:].to(self.model.device, self.model.dtype)
            return generation.generate(given, layers[batch], steps)

        tokens = torch.cat(self.model.budget.in_batches(len(rows), lambda _: generation.rows_per_batch(steps), run))
        texts = [self.model.tokens.decode(row, self.model.end_ids) for row in tokens.tolist()]
        return tuple(texts[i] for i in place.tolist())

    def _proved_sharing(self, passes: PatchedPass) -> "Sharing":
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
        return self._passes.get_or_compute(prompt, lambda: PatchedPass(self.model, prompt, mode))

    def proved_mode(self, prompt: Prompt) -> Mode:
        """Return the mode of the model's patched passes; proved on this prompt, where it has not been before."""
        if self.mode is None:
            model = self.model

            def holds(mode: Mode) -> bool:
                tried = try_each([mode], lambda one: mode_deviation(model, prompt, one, some_layers(model)))
                return mode == "plain" or bool(list(agreeing(model, tried, "patched pass")))

            mode: Mode = proved(model, "patched_pass", lambda: fastest_mode(model, prompt), holds)
            self.mode = mode
        return self.mode


def _keyed(vectors: Tensor, target_layers: Tensor) -> Tensor:
    """Put each row's target layer before its vector: rows that are equal in both are computed once."""
    return torch.cat([target_layers[:, None].to(vectors), vectors], dim=1)


def patcher_of(model: LanguageModel) -> Patcher:
    """Return the one patcher of a model, so that its proof and its memory are shared by all methods."""
    return model.cache.get_or_compute("patcher", lambda: Patcher(model))


# How much rows share: the prompt's prefix and what lies below the target layer; the model's own cache; nothing.
Sharing = Literal["shared", "cached", "plain"]
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)
# Whether all rows have ended is asked this often: each time a GPU has to be waited for.
LOOK_EVERY = 8
PROOF_STEPS = 3


class Generation:
    """Generation from one prompt."""

    def __init__(self, passes: PatchedPass, sharing: Sharing) -> None:
        self._passes = passes
        self._model = passes.model
        self._sharing = sharing

    @torch.no_grad()
    def generate(self, vectors: Float[Tensor, "row width"], layers: list[int], steps: int) -> Int[Tensor, "row step"]:
        """Return the most likely continuation of one batch of rows that are sorted by target layer.

        After a row's first end-of-text token all its tokens are that token.
        """
        ends = torch.tensor(self._model.end_ids, device=self._model.device, dtype=torch.long)
        tokens: list[Tensor] = []
        ended = torch.zeros(len(vectors), dtype=torch.bool, device=self._model.device)
        logits = self._logits(vectors, layers, tokens)
        for step in range(steps):
            best = next(logits).argmax(-1)
            if tokens:
                best = torch.where(ended, tokens[-1], best)
            tokens.append(best)
            ended = torch.isin(best, ends)
            if step % LOOK_EVERY == LOOK_EVERY - 1 and bool(ended.all()):
                break
        return torch.stack(tokens + tokens[-1:] * (steps - len(tokens)), dim=1)

    @cached_property
    def _row_bytes(self) -> int:
        model = self._model
        zeros = torch.zeros(4, model.d_model, device=model.device, dtype=model.dtype)
        passes = self._passes
        what = f"generated_row_bytes {self._sharing} {passes.mode} {passes.prompt.position} {len(passes.prompt.ids)}"
        return proved(model, what, lambda: bytes_per_row(lambda n: self.generate(zeros[:n], [0] * n, PROOF_STEPS)))

    def rows_per_batch(self, steps: int) -> int:
        """How many rows are generated at once: the prompt's, as far as the keys and values of all steps fit."""
        model = self._model
        # Measured over a few steps: each further one adds keys and values for at most that much.
        return min(self._passes.rows_per_batch, model.budget.rows(self._row_bytes * -(-steps // PROOF_STEPS)))

    def _logits(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the next token's logits, step by step; the caller adds each step's tokens before the next."""
        if self._sharing == "plain":
            return self._without_cache(vectors, layers, tokens)
        if self._sharing == "cached":
            return self._with_own_cache(vectors, layers, tokens)
        return self._with_shared_prefix(vectors, layers, tokens)

    def _with_shared_prefix(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        clean = self._passes.clean
        with recording(self._passes.prefix) as records:
            final = self._passes.run(vectors, layers)
        yield self._model.unembed(final)
        # Rows join at the end of the batch: at layers below its target a row's keys are the clean ones.
        added = [
            _joined(record[0] if record else None, own, len(vectors))
            for record, own in zip(records, clean.added, strict=True)
        ]
        del records
        yield from self._decode(extended(self._passes.prefix, added), tokens)

    def _with_own_cache(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Run whole prompts with the model's own cache."""
        ids = self._passes.ids.expand(len(vectors), -1)
        out = self._passes.hooked(ids, vectors, layers, use_cache=True)
        yield out.logits[:, -1].float()
        yield from self._decode(out.past_key_values, tokens)

    def _without_cache(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Run the whole text again for each token: the definition, and the reference for the others."""
        prompts = self._passes.ids.expand(len(vectors), -1)
        while True:
            ids = torch.cat([prompts, *[step[:, None] for step in tokens]], dim=1)
            yield self._passes.hooked(ids, vectors, layers, use_cache=False).logits[:, -1].float()

    def _decode(self, cache: Any, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        while True:
            out = self._model.module(tokens[-1][:, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            yield out.logits[:, -1].float()

    def forced(self, vectors: Tensor, layers: list[int], tokens: Int[Tensor, "row step"]) -> Tensor:
        """Return the logits of each step where the tokens are given: [row, step, vocab]."""
        given: list[Tensor] = []
        out = []
        logits = self._logits(vectors, layers, given)
        for step in tokens.T:
            out.append(next(logits))
            given.append(step)
        return torch.stack(out, dim=1)


def _joined(record: KeysValues | None, clean: KeysValues, rows: int) -> KeysValues:
    def whole(ran: Tensor | None, still: Tensor) -> Tensor:
        rest = still.expand(rows - (0 if ran is None else len(ran)), *still.shape[1:])
        return rest if ran is None else torch.cat([ran, rest])

    ran = (None, None) if record is None else record
    return whole(ran[0], clean[0]), whole(ran[1], clean[1])


@torch.no_grad()
def deviation(passes: PatchedPass, sharing: Sharing, layers: Sequence[int] | None = None) -> float:
    """Return how far the logits of a few forced steps lie from plain passes, relative to the largest.

    One row a target layer, by default all of them. The plain pass of prompt and forced tokens has the logits of all
    steps, as a causal model cannot see ahead.
    """
    model = passes.model
    at = list(range(model.n_layers + 1)) if layers is None else list(layers)
    vectors = trial_vectors(model, passes.prompt)[at]
    tokens = passes.ids[:, :PROOF_STEPS].expand(len(at), -1)
    text = torch.cat([passes.ids, passes.ids[:, : PROOF_STEPS - 1]], dim=1)
    off = []
    for begin in range(0, len(at), TRIAL_ROWS):
        part = slice(begin, begin + TRIAL_ROWS)
        rows = text.expand(len(vectors[part]), -1)
        plain = passes.hooked(rows, vectors[part], at[part], use_cache=False).logits[:, -PROOF_STEPS:].float()
        off.append(relative_deviation(Generation(passes, sharing).forced(vectors[part], at[part], tokens[part]), plain))
    return max(off)


def try_sharings(passes: PatchedPass) -> Iterator[tuple[Sharing, float, str]]:
    """Try the ways that share something: how far each lies from plain passes, or infinity and why it is impossible."""
    possible = [sharing for sharing in SHARINGS[:-1] if sharing != "shared" or passes.mode == "shared"]
    return try_each(possible, lambda sharing: deviation(passes, sharing))


def fastest_sharing(passes: PatchedPass) -> Sharing:
    """Return the way of generating that shares most and agrees with plain passes on this model and prompt."""
    return next(agreeing(passes.model, try_sharings(passes), "generation"), "plain")
