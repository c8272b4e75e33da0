"""What a verbalizer says of some layers and items at a time, put together."""

import numpy as np
import torch
from torch import Tensor

from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.patchscopes.patched import Said
from lensbench.inspectors.scores import Scores
from lensbench.results.records import CONFIDENCE


class Heard:
    """Scores and texts of all layers and items, filled in as they are said.

    Args:
        evidence: all layers and items.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._shape = len(evidence.layers), evidence.n_items
        self._kept: dict[str, np.ndarray] = {}

    def keep(self, layers: list[int], items: list[int], said: Said) -> None:
        """Keep what was said of items (inside layers)."""
        self._put("log_probs", layers, items, _array(said.log_probs))
        self._put("ranks", layers, items, said.ranks.cpu().numpy())
        if said.whole is not None:
            self._put("whole", layers, items, _array(said.whole))
        if said.texts:
            self._put("texts", layers, items, np.array(said.texts, dtype=object))

    def keep_shares(self, layers: list[int], items: list[int], shares: Tensor) -> None:
        """Keep the shares of samples."""
        self._put("shares", layers, items, shares.numpy())

    def _put(self, name: str, layers: list[int], items: list[int], values: np.ndarray) -> None:
        of_each = values.shape[1:]
        grid = self._kept.setdefault(name, np.empty((*self._shape, *of_each), dtype=values.dtype))
        grid[np.ix_(layers, items)] = values.reshape(len(layers), len(items), *of_each)

    def scores(self, samples: int) -> Scores:
        """Return the scores: one attempt, and where there were samples a second one."""
        log_probs, ranks = (torch.from_numpy(self._kept[name])[:, None] for name in ("log_probs", "ranks"))
        whole = torch.from_numpy(self._kept["whole"])[:, None] if "whole" in self._kept else None
        texts = self._kept["texts"][:, None] if "texts" in self._kept else None
        if not samples:
            return Scores(("default",), log_probs, ranks, texts, whole=whole)
        shares = torch.from_numpy(self._kept["shares"])[:, None]
        sure = torch.cat([log_probs.softmax(-1).amax(-1), shares.amax(-1)], dim=1).double().numpy()
        both = torch.cat([log_probs, shares.log()], dim=1)
        texts = None if texts is None else texts.repeat(2, axis=1)
        # Samples are of the first words alone.
        whole = None if whole is None else torch.cat([whole, torch.full_like(whole, torch.nan)], dim=1)
        return Scores(("default", f"samples={samples}"), both, None, texts, {CONFIDENCE: sure}, whole=whole)


def _array(values: Tensor) -> np.ndarray:
    """Return numbers as numpy has them, which knows no shorter ones than these."""
    array: np.ndarray = values.cpu().to(torch.promote_types(values.dtype, torch.float32)).numpy()
    return array
