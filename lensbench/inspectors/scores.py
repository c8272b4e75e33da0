"""What an inspector returns: scores of every answer, and the names of its attempts."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensbench.errors import LensbenchError


class AttemptName(str):
    """The name of an attempt that writes at a target layer of its own, as grids of source and target layers show it.

    Args:
        name: the name in the records.
        target_layer: where the attempt writes; None for the source layer.
        variant: what else the attempt varies, in words; attempts of one variant share a grid.
    """

    target_layer: int | None
    variant: str

    def __new__(cls, name: str, target_layer: int | None, variant: str = "") -> "AttemptName":
        """Make the string, with what it says beside it."""
        made = super().__new__(cls, name)
        made.target_layer, made.variant = target_layer, variant
        return made

    def __reduce__(self) -> tuple[type["AttemptName"], tuple[str, int | None, str]]:
        return AttemptName, (str(self), self.target_layer, self.variant)

    def describe(self) -> dict[str, int | str]:
        """Return what the name says as plain values, for `run.json`."""
        return {"target_layer": "same" if self.target_layer is None else self.target_layer, "variant": self.variant}


@dataclass(frozen=True)
class Scores:
    """Log-scores of every answer of the relation, for every item, attempt and layer.

    Attributes:
        attempts: names of the attempts; the first is the method's default.
        log_scores: higher is more likely; -inf for an answer that the method cannot give. One layer where it reads
            none.
        ranks: the answer's rank in the whole vocabulary (0 = the top), for methods that see it.
        whole: log-probability of each answer to its last token, where the evidence asked for it.
        texts: what a method that generates said, [layer, attempt, item], where the evidence asked for it.
        measures: what else the method measured, by name, such as the length of a code: [layer, attempt, item].
        totals: what it measured over all items at once, by name: [layer, attempt].
        golds: the right answers, where they depend on the attempt: the model's own next tokens, [attempt, item].
    """

    attempts: tuple[str, ...]
    log_scores: Float[Tensor, "layer attempt item answer"]
    ranks: Int[Tensor, "layer attempt item answer"] | None = None
    texts: Shaped[np.ndarray, "layer attempt item"] | None = None
    measures: Mapping[str, Float[np.ndarray, "layer attempt item"]] = field(default_factory=dict)
    totals: Mapping[str, Float[np.ndarray, "layer attempt"]] = field(default_factory=dict)
    golds: Shaped[np.ndarray, "attempt item"] | None = None
    whole: Float[Tensor, "layer attempt item answer"] | None = None

    def __repr__(self) -> str:
        shape = zip(("layer", "attempt", "item", "answer"), self.log_scores.shape, strict=False)
        parts = [" x ".join(f"{axis} {size}" for axis, size in shape), f"attempts {', '.join(self.attempts)}"]
        parts += [name for name in ("ranks", "texts", "golds", "whole") if getattr(self, name) is not None]
        parts += [f"{kind} {', '.join(held)}" for kind in ("measures", "totals") if (held := getattr(self, kind))]
        return f"Scores({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    def gold_ranks(self) -> np.ndarray:
        """Return the ranks of the only answer there is, in prose: [layer, attempt, item].

        Raises:
            LensbenchError: there are no ranks.
        """
        if self.ranks is None:
            raise LensbenchError("the scores have no ranks; compare a lens with the model")
        ranks: np.ndarray = self.ranks[..., 0].cpu().numpy()
        return ranks

    def select(self, *, layers: Sequence[int] | None = None, items: Sequence[int] | None = None) -> "Scores":
        """Return the scores at some positions of the layer axis, or of the item axis; measures over all items go."""
        at = slice(None) if layers is None else list(layers)
        of = slice(None) if items is None else list(items)
        return self._map(self.attempts, lambda values: values[at][:, :, of])

    def of_default_attempt(self, name: str) -> "Scores":
        """Return the scores of the first attempt alone, under another name."""
        return self._map((name,), lambda values: values[:, :1])

    def _map(self, attempts: tuple[str, ...], part: Callable[[Any], Any]) -> "Scores":
        return Scores(
            attempts,
            part(self.log_scores),
            None if self.ranks is None else part(self.ranks),
            None if self.texts is None else part(self.texts),
            {name: part(values) for name, values in self.measures.items()},
            whole=None if self.whole is None else part(self.whole),
        )

    @staticmethod
    def concat(parts: "Sequence[Scores]", order: Sequence[int], axis: Literal["layer", "item"]) -> "Scores":
        """Put scores of different layers or items together.

        Args:
            parts: of the same attempts.
            order: for each position of the joined axis, the position that it is sorted by.
            axis: the axis that the parts differ in.
        """
        dim = 0 if axis == "layer" else 2
        places = np.argsort(order, kind="stable")
        index = (slice(None),) * dim + (places,)
        ranks, texts, whole = [[getattr(part, name) for part in parts] for name in ("ranks", "texts", "whole")]

        def joined(tensors: list[Tensor | None]) -> Tensor | None:
            there = [tensor.cpu() for tensor in tensors if tensor is not None]
            return torch.cat(there, dim=dim)[index] if len(there) == len(parts) else None

        measures = {name: [part.measures[name] for part in parts] for name in parts[0].measures}
        return Scores(
            parts[0].attempts,
            torch.cat([part.log_scores.cpu() for part in parts], dim=dim)[index],
            joined(ranks),
            None if any(part is None for part in texts) else np.concatenate(texts, axis=dim)[index],
            {name: np.concatenate(values, axis=dim)[index] for name, values in measures.items()},
            whole=joined(whole),
        )

    def validate(self, name: str, sizes: tuple[int, int, int]) -> None:
        """Refuse scores of another shape than (layer, attempt, item, answer), and scores that are not numbers.

        Args:
            name: the inspector that returned them.
            sizes: how many layers, items and answers it was asked about.

        Raises:
            ValueError: what is wrong with them.
        """
        layers, items, answers = sizes
        expected = (layers, len(self.attempts), items, answers)
        if tuple(self.log_scores.shape) != expected:
            raise ValueError(
                f"{name} returned log_scores of shape {tuple(self.log_scores.shape)}, expected (layer, "
                f"attempt, item, answer) = {expected}"
            )
        if self.whole is not None and self.whole.shape != self.log_scores.shape:
            raise ValueError(f"{name} returned whole answers of shape {tuple(self.whole.shape)}, expected {expected}")
        others = {} if self.texts is None else {"texts": self.texts}
        for what, values in {**others, **self.measures}.items():
            if values.shape != expected[:3]:
                raise ValueError(
                    f"{name} returned {what} of shape {values.shape}, expected (layer, attempt, item) = {expected[:3]}"
                )
        if len(set(self.attempts)) < len(self.attempts):
            raise ValueError(f"{name} gave two attempts one name: {', '.join(self.attempts)}")
        if bool(torch.isnan(self.log_scores).any()):
            raise ValueError(f"{name} returned a score that is not a number; give -inf to impossible answers")
