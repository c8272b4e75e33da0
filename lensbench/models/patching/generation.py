"""Generation after a patched prompt: what rows share, proved once a model, and the tokens step by step.

A patch acts on the prompt alone; what is generated after it is the model's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.models.language_model import relative_deviation
from lensbench.models.memory import bytes_per_row
from lensbench.models.patching.passes import PatchedPass, agreeing, trial_vectors, try_each
from lensbench.models.proofs import proved
from lensbench.models.replay import KeysValues, extended, recording

# How much rows share: the prompt's prefix and what lies below the target layer; the model's own cache; nothing.
Sharing = Literal["shared", "cached", "plain"]
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)
# Whether all rows have ended is asked this often: each time a GPU has to be waited for.
LOOK_EVERY = 8
PROOF_STEPS = 3
# So many rows of a plain pass are run at once while something is tried.
TRIAL_ROWS = 8


@dataclass(frozen=True)
class Begun:
    """A prompt that rows have run through.

    Attributes:
        final: its last position before the final norm.
        added: the keys and values of what is not shared, one pair a layer.
    """

    final: Float[Tensor, "row d_model"]
    added: list[KeysValues]


class Generation:
    """Generation from one prompt."""

    def __init__(self, passes: PatchedPass, sharing: Sharing) -> None:
        self._passes = passes
        self._model = passes.model
        self.sharing = sharing

    @torch.no_grad()
    def generate(
        self, vectors: Float[Tensor, "row width"], layers: list[int], steps: int, draw: torch.Generator | None = None
    ) -> Int[Tensor, "row step"]:
        """Return the most likely continuation of one batch of rows that are sorted by target layer.

        After a row's first end-of-text token all its tokens are that token.

        Args:
            vectors: what is written, one row a text.
            layers: where.
            steps: how many tokens.
            draw: the tokens are drawn at temperature 1 by it.
        """
        ends = torch.tensor(self._model.end_ids, device=self._model.device, dtype=torch.long)
        tokens: list[Tensor] = []
        ended = torch.zeros(len(vectors), dtype=torch.bool, device=self._model.device)
        logits = self._logits(vectors, layers, tokens)
        for step in range(steps):
            found = next(logits)
            if draw is not None:  # the largest of logits with Gumbel noise is a draw of the softmax
                uniform = torch.rand(found.shape, generator=draw).clamp(min=1e-20).to(found)
                found = found - (-uniform.log()).log()
            best = found.argmax(-1)
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
        what = f"generated_row_bytes {self.sharing} {passes.mode} {passes.prompt.position} {len(passes.prompt.ids)}"
        return proved(model, what, lambda: bytes_per_row(lambda n: self.generate(zeros[:n], [0] * n, PROOF_STEPS)))

    def rows_per_batch(self, steps: int) -> int:
        """How many rows are generated at once: the prompt's, as far as the keys and values of all steps fit."""
        model = self._model
        # Measured over a few steps: each further one adds keys and values for at most that much.
        return min(self._passes.rows_per_batch, model.budget.rows(self._row_bytes * -(-steps // PROOF_STEPS)))

    def _logits(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the next token's logits, step by step; the caller adds each step's tokens before the next."""
        if self.sharing == "plain":
            return self._without_cache(vectors, layers, tokens)
        if self.sharing == "cached":
            return self._with_own_cache(vectors, layers, tokens)
        return self._with_shared_prefix(vectors, layers, tokens)

    @torch.no_grad()
    def begin(self, vectors: Float[Tensor, "row width"], layers: list[int]) -> "Begun":
        """Run the prompt once, and keep what goes on from it."""
        clean = self._passes.clean
        with recording(self._passes.prefix) as records:
            final = self._passes.run(vectors, layers)
        # Rows join at the end of the batch: at layers below its target a row's keys are the clean ones.
        added = [
            _joined(record[0] if record else None, own, len(vectors))
            for record, own in zip(records, clean.added, strict=True)
        ]
        return Begun(final, added)

    @torch.no_grad()
    def after(self, begun: "Begun", ids: Sequence[int]) -> Float[Tensor, "row vocab"]:
        """Return the logits after the prompt and some tokens more, the same for all rows."""
        if not ids:
            return self._model.unembed(begun.final)
        tokens = [torch.full((len(begun.final),), token, device=self._model.device) for token in ids]
        given: list[Tensor] = []
        logits = self._decode(extended(self._passes.prefix, begun.added), given)
        for token in tokens:
            given.append(token)
            last = next(logits)
        return last

    def _with_shared_prefix(self, vectors: Tensor, layers: list[int], tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        begun = self.begin(vectors, layers)
        yield self._model.unembed(begun.final)
        yield from self._decode(extended(self._passes.prefix, begun.added), tokens)

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
