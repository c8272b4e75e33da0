"""What all cells of a run share: its models, the layers read, and where activations are kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lensbench.inspectors.target import Target
from lensbench.models.activations import ResidualCache
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.results.records import CORRECTED, SCHEMA_VERSION

Facts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class ControlModels:
    """Models that baselines read in the target's place.

    Attributes:
        models: `unplanted` (the target without its facts), `twin` (the same names, other facts) and `reference` (a
            reader of text that lacks the facts), as far as the run has them.
        twin_facts: the twin's facts: attribute -> name -> value.
        names: role -> the model's name in the run.
    """

    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    twin_facts: Facts = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def describe(self, roles: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return the models with these roles as plain values, for digests and `run.json`."""
        return {
            role: {"model": self.names.get(role, self.models[role].name), "fingerprint": self.models[role].fingerprint}
            for role in sorted(set(roles) & set(self.models))
        }


@dataclass(frozen=True)
class RunContext:
    """The models of a run, how they are read, and what is kept of them.

    Attributes:
        model: the target, or the model that a baseline reads in its place.
        verbalizer: the model that turns activations into words.
        corpus: prose, and the target on it.
        layers: the layers asked.
        seed: the seed of everything random.
        limit: how many test items are drawn for each task and site; None takes all.
        residuals: where captured activations are kept.
        controls: other models, for baselines.
        depth: the number of blocks by which the layers are numbered; None for `model` itself.
        score: the score that decides verdicts, `corrected` or `raw`.
        whole_answers: whether answers are scored to their last token, too.
        read_at: the layers that are captured, where a baseline is asked at fewer; None for those asked.
    """

    model: LanguageModel
    verbalizer: LanguageModel
    corpus: Corpus
    layers: tuple[int, ...]
    seed: int
    limit: int | None = None
    residuals: ResidualCache = field(default_factory=lambda: ResidualCache(None))
    controls: ControlModels = field(default_factory=ControlModels)
    depth: int | None = None
    score: str = CORRECTED
    whole_answers: bool = False
    read_at: tuple[int, ...] | None = None

    @cached_property
    def target(self) -> Target:
        """The target as inspectors may use it."""
        return Target(self.model)

    @property
    def captured_layers(self) -> tuple[int, ...]:
        """The layers to read: those selected, and the embeddings, which are a baseline."""
        return tuple(sorted({0, *(self.read_at or self.layers)}))

    def source_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Return the model's own layers for these: in a model of another depth, those at the same relative depth."""
        depth = self.depth or self.model.n_layers
        return tuple(int(layer * self.model.n_layers / depth + 0.5) for layer in layers)

    def with_layers(self, layers: tuple[int, ...]) -> "RunContext":
        """Return the context asked at some of its layers; all are captured, as others are asked about them."""
        return replace(self, layers=layers, read_at=self.read_at or self.layers)

    def with_model(self, model: LanguageModel) -> "RunContext":
        """Return the context with another model read in the target's place, its layers numbered as the target's."""
        return replace(self, model=model, depth=self.depth or self.model.n_layers)

    def describe(self) -> dict[str, Any]:
        """Return what all records depend on as plain values, for digests and `run.json`."""
        return {
            "schema": SCHEMA_VERSION,
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "verbalizer": self.verbalizer.name,
            "verbalizer_fingerprint": self.verbalizer.fingerprint,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "model_args": dict(self.model.model_args),
            "module_paths": [self.model.parts.paths.blocks, self.model.parts.paths.norm],
            "layers": list(self.layers),
            "limit": self.limit,
            "seed": self.seed,
            "score": self.score,
            **({"whole_answers": True} if self.whole_answers else {}),
        }
