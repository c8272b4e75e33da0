"""What learning costs: time, corpus tokens, labelled items, memory."""

import sys
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass
class Costs:
    """What fitting a method took, over all its relations and folds.

    Attributes:
        seconds: of learning; what was taken from the cache counts as it did when it was learned.
        tokens: of the corpus.
        items: labelled training items, each as often as it was learned from.
        memory: the most MiB that the process had held when a fit ended.
        split_half: by layer, how far two halves of what the method learned from agree, where it says so.
    """

    seconds: float = 0.0
    tokens: int = 0
    items: int = 0
    memory: int = 0
    split_half: tuple[float, ...] = ()

    def add(self, other: "Costs") -> None:
        """Add what another fit took."""
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.items += other.items
        self.memory = max(self.memory, other.memory)
        self.split_half = other.split_half or self.split_half

    def entry(self) -> dict[str, Any]:
        """Return what the run's journal says of it; nothing where nothing was learned."""
        if not (self.tokens or self.items):
            return {}
        return {
            "fit": {
                "seconds": round(self.seconds, 3),
                "training_tokens": self.tokens,
                "training_items": self.items,
                "peak_memory_mb": self.memory,
                **({"split_half": list(self.split_half)} if self.split_half else {}),
            }
        }


def peak_memory() -> int:
    """Return the most memory, in MiB, that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset // 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))
