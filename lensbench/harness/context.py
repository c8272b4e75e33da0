"""The lab: what all benches of a run share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from lensbench.inspectors.evidence import Target
from lensbench.models.activations import ResidualCache
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel

Facts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Relatives:
    """Models that rivals read in the target's place.

    Attributes:
        models: `unplanted` (the target without its facts), `twin` (the same names, other facts), `reference` (a reader
            of text that lacks the facts); those that the run has.
        twin_facts: attribute -> name -> value, as the twin was told them.
        names: role -> what the model is called in the run.
    """

    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    twin_facts: Facts = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def describe(self, roles: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return those that have one of these roles, as plain values, for digests and `run.json`."""
        return {
            role: {"model": self.names.get(role, self.models[role].name), "fingerprint": self.models[role].fingerprint}
            for role in sorted(set(roles) & set(self.models))
        }


@dataclass(frozen=True)
class Lab:
    """What all benches of a run share: the models, the corpus, the layers asked.

    Attributes:
        model: the target, or what a rival reads in its place.
        verbalizer: what turns activations into words.
        corpus: the target on prose.
        layers: the layers asked.
        seed: of everything random.
        residuals: where residuals are kept.
        relatives: other models, for rivals.
        depth: how many layers the model has by which the layers are numbered; None for `model` itself.
    """

    model: LanguageModel
    verbalizer: LanguageModel
    corpus: Corpus
    layers: tuple[int, ...]
    seed: int
    residuals: ResidualCache = field(default_factory=lambda: ResidualCache(None))
    relatives: Relatives = field(default_factory=Relatives)
    depth: int | None = None

    @cached_property
    def target(self) -> Target:
        """The target as inspectors may use it."""
        return Target(self.model)

    @property
    def captured(self) -> tuple[int, ...]:
        """The layers to read: those asked, and the embeddings, which are a rival."""
        return tuple(sorted({0, *self.layers}))

    @property
    def places(self) -> tuple[int, ...]:
        """Where the model has the layers to read: in a model of another depth, the layers as deep in it."""
        depth = self.depth or self.model.n_layers
        return tuple(int(layer * self.model.n_layers / depth + 0.5) for layer in self.captured)

    def on(self, model: LanguageModel) -> "Lab":
        """Return the lab with another model read in the target's place, at the layers of the same numbers."""
        return replace(self, model=model, depth=self.depth or self.model.n_layers)
