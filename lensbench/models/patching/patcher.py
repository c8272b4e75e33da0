"""The patcher of a model: the fastest mode that agrees with plain passes, and patched passes with a memory."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel, TokenScores, relative_deviation
from lensbench.models.memory import Memo
from lensbench.models.patching.generation import Generation, Sharing, fastest_sharing
from lensbench.models.patching.passes import MODES, Mode, PatchedPass, Prompt, agreeing, trial_vectors, try_each

LOG = logging.getLogger("lensbench")
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


def mode_deviation(model: LanguageModel, prompt: Prompt, mode: Mode) -> float:
    """Return how far a mode's logits lie from plain patched passes, relative to the largest logit.

    One row a target layer, of a fixed random vector on the scale of the prompt's own residuals there.

    Raises:
        ReplayError: the model defeats the mode.
    """
    layers = list(range(model.n_layers + 1))
    vectors = trial_vectors(model, prompt)
    reference = model.unembed(PatchedPass(model, prompt, "plain").run(vectors, layers))
    other = model.unembed(PatchedPass(model, prompt, mode).run(vectors, layers))
    return relative_deviation(other, reference)


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
        vectors: Float[Tensor, "row d_model"],
        target_layers: Int[Tensor, " row"],
        token_ids: Sequence[int],
    ) -> TokenScores:
        """Patch each vector at its target layer and score the asked tokens as the next word.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)

        def compute(rows: Tensor) -> TokenScores:
            final = passes.final_residuals(rows[:, 1:], rows[:, 0].round().long())
            return self.model.score_tokens(final, token_ids)

        keyed = _keyed(vectors, target_layers)
        return self._memory.answer((prompt, tuple(token_ids)), keyed, compute)

    def generate(
        self, prompt: Prompt, vectors: Float[Tensor, "row d_model"], target_layers: Int[Tensor, " row"], steps: int
    ) -> tuple[str, ...]:
        """Patch each vector at its target layer and generate at most `steps` tokens, greedily.

        The patch acts on the prompt alone. A text ends before its first end-of-text token. Identical rows are
        generated once.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)
        if self.sharing is None:
            self.sharing = fastest_sharing(passes)
        generation = Generation(passes, self.sharing)
        rows, place = torch.unique(_keyed(vectors, target_layers), dim=0, return_inverse=True)
        layers = rows[:, 0].round().long().tolist()  # sorted: they are the first column

        def run(batch: slice) -> Tensor:
            given = rows[batch, 1:].to(self.model.device, self.model.dtype)
            return generation.generate(given, layers[batch], steps)

        tokens = torch.cat(self.model.budget.in_batches(len(rows), lambda _: generation.rows_per_batch(steps), run))
        texts = [self.model.tokens.decode(row, self.model.end_ids) for row in tokens.tolist()]
        return tuple(texts[i] for i in place.tolist())

    def _pass(self, prompt: Prompt, vectors: Tensor) -> PatchedPass:
        if vectors.shape[1] != self.model.d_model:
            raise LensbenchError(
                f"a vector of width {vectors.shape[1]} cannot be patched into {self.model.name} (width "
                f"{self.model.d_model}); choose a verbalizer of the target's width"
            )
        mode = self.proved_mode(prompt)
        return self._passes.get_or_compute(prompt, lambda: PatchedPass(self.model, prompt, mode))

    def proved_mode(self, prompt: Prompt) -> Mode:
        """Return the mode of the model's patched passes; proved on this prompt, where it has not been before."""
        if self.mode is None:
            self.mode = fastest_mode(self.model, prompt)
        return self.mode


def _keyed(vectors: Tensor, target_layers: Tensor) -> Tensor:
    """Put each row's target layer before its vector: rows that are equal in both are computed once."""
    return torch.cat([target_layers[:, None].to(vectors), vectors], dim=1)


def patcher_of(model: LanguageModel) -> Patcher:
    """Return the one patcher of a model, so that its proof and its memory are shared by all methods."""
    return model.cache.get_or_compute("patcher", lambda: Patcher(model))
