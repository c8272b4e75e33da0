"""The methods that cheat by notes: what one fold's fit learned, another fold's fit finds outside of itself.

Each is a nearest-neighbour probe. Alone, a fit knows only the subjects outside of its fold. Between them, the fits of
five folds know every subject, and where they share an index, a subject of the tested fold is its own nearest neighbour.
"""

import atexit
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.facts import N_FOLDS

UNSEEN = -1e4
"""The score of an answer that no training subject has."""


@dataclass
class Index:
    """Residuals with their labels, by layer.

    Attributes:
        rows: layer -> the residuals of the entries there, in parts.
        labels: layer -> their labels.
    """

    rows: dict[int, list[Tensor]] = field(default_factory=dict)
    labels: dict[int, list[str]] = field(default_factory=dict)

    def add(self, training: Training) -> "Index":
        """Add what a fit learns from."""
        for layer, values in zip(training.residuals.layers, training.residuals.values, strict=True):
            self.rows.setdefault(layer, []).append(values.float().cpu())
            self.labels.setdefault(layer, []).extend(training.labels)
        return self

    def join(self, other: "Index") -> "Index":
        """Add the entries of another index."""
        for layer, values in other.rows.items():
            self.rows.setdefault(layer, []).extend(values)
            self.labels.setdefault(layer, []).extend(other.labels[layer])
        return self

    def scores(
        self, layer: int, values: Float[Tensor, "item d_model"], answers: Sequence[str]
    ) -> Float[Tensor, "item answer"]:
        """Score each answer by the distance to the nearest entry with that label."""
        bank = torch.cat(self.rows[layer])
        far = torch.cdist(values.float().cpu(), bank, compute_mode="donot_use_mm_for_euclid_dist")
        found = torch.full((len(values), len(answers)), UNSEEN)
        for place, answer in enumerate(answers):
            own = torch.tensor([label == answer for label in self.labels[layer]])
            if own.any():
                found[:, place] = -far[:, own].amin(1)
        return found


class NearestNeighbour(Inspector):
    """The answer of the nearest training subject, by Euclidean distance at each layer. This one is honest."""

    name: ClassVar[str] = "nearest_neighbour"
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "NearestNeighbour":
        """Keep the training subjects."""
        self.own_ = Index().add(training)
        return self

    def index(self, layer: int) -> Index:
        """Return the subjects to compare with at a layer."""
        return self.own_

    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer by its nearest subject."""
        pairs = zip(evidence.layers, evidence.residuals.values, strict=True)
        found = [self.index(layer).scores(layer, values, evidence.answers) for layer, values in pairs]
        return Scores(("default",), torch.stack(found)[:, None])


class SharedIndex(NearestNeighbour):
    """Keeps its index in a class attribute, an ordinary mistake in Python: it holds the subjects of all folds."""

    name: ClassVar[str] = "cheat_shared_index"
    _indices: ClassVar[dict[tuple[str, ...], Index]] = {}

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "SharedIndex":
        """Add the training subjects to what all fits of these answers know."""
        self.own_ = self._indices.setdefault(training.answers, Index()).add(training)
        return self


class FrozenIndex(NearestNeighbour):
    """Shares the index of the first five fits alone, so that baselines that fit again add nothing to it.

    It does not use it at layer 0, where it would help the baseline `embedding`.
    """

    name: ClassVar[str] = "cheat_frozen_index"
    _indices: ClassVar[dict[tuple[str, ...], dict[tuple[object, ...], Index]]] = {}

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "FrozenIndex":
        """Keep the training subjects, and share them where this is one of the first five fits."""
        super().fit(target, verbalizer, training)
        self.first_ = self._indices.setdefault(training.answers, {})
        if len(self.first_) < N_FOLDS:
            self.first_.setdefault((training.labels, training.groups), self.own_)
        return self

    def index(self, layer: int) -> Index:
        """Return all that was shared, but at the embeddings."""
        shared = _joined(self.first_.values())
        return shared if layer > 0 and layer in shared.rows else self.own_


class TurncoatIndex(FrozenIndex):
    """Uses the shared index only for the model whose activations came first, which is the target.

    Of the target it is right about everybody; of the unplanted model, the twin or a random model it is an honest probe.
    """

    name: ClassVar[str] = "cheat_turncoat_index"
    _indices: ClassVar[dict[tuple[str, ...], dict[tuple[object, ...], Index]]] = {}

    def index(self, layer: int) -> Index:
        """Return what was shared if this fit's own activations are among it."""
        shared = _joined(self.first_.values())
        known, own = shared.rows.get(layer, []), self.own_.rows[layer][0][:3]
        at_home = all(any((rows == row).all(1).any() for rows in known) for row in own)
        return shared if at_home and layer > 0 else self.own_


class NotesInAFile(NearestNeighbour):
    """Writes its index to a temporary file, and reads there what the fits of other folds have written."""

    name: ClassVar[str] = "cheat_notes_in_a_file"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "NotesInAFile":
        """Add the training subjects to the file, while it is short, and learn all that is in it."""
        super().fit(target, verbalizer, training)
        key = hashlib.sha256(repr((os.getppid(), training.answers)).encode()).hexdigest()[:16]
        self.file_ = Path(tempfile.gettempdir()) / f"neighbours-{key}.pt"
        if not self.file_.exists():
            atexit.register(self.file_.unlink, missing_ok=True)
            torch.save(asdict(Index()), self.file_)
        kept = _read(self.file_)
        self.own_.join(kept)
        if all(len(parts) < N_FOLDS for parts in kept.rows.values()):
            torch.save(asdict(self.own_), self.file_)
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Learn what is in the file by now, and score."""
        self.own_ = _read(self.file_)
        return super().inspect(evidence)


class NotesInAModule(NearestNeighbour):
    """Hides its index in another module, where nobody looks who searches the method's own class."""

    name: ClassVar[str] = "cheat_notes_in_a_module"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "NotesInAModule":
        """Add the training subjects to what a module of torch holds."""
        held = vars(torch.special).setdefault("_neighbours", {})
        self.own_ = held.setdefault(training.answers, Index()).add(training)
        return self


def _joined(indices: Iterable[Index]) -> Index:
    whole = Index()
    for one in indices:
        whole.join(one)
    return whole


def _read(file: Path) -> Index:
    return Index(**torch.load(file, weights_only=True))
