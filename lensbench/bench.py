"""The bench: the items of one relation at one read site, everything captured, and methods at work on them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from lensbench.corpus import Corpus
from lensbench.costs import Costs, peak_memory
from lensbench.errors import NotApplicableError
from lensbench.evidence import Evidence, Scores, Source, Target, Text, Training
from lensbench.handles import Change, Components, TargetRuns
from lensbench.inspectors.base import Inspector
from lensbench.model.component_capture import Component, capture_component
from lensbench.model.language_model import LanguageModel
from lensbench.residual_cache import ResidualCache
from lensbench.residuals import Reading, Residuals, find_site
from lensbench.tasks import N_FOLDS, Item, Relation

Labels = Mapping[str, str]


NO_QUESTION = "prose asks no question"


def forms_of(relation: Relation) -> tuple[str, ...]:
    """Return every text that asks a relation's question about a subject, the inspection prompt first."""
    return tuple(dict.fromkeys([*relation.inspection, *relation.questions]))


@dataclass(frozen=True)
class Lab:
    """What all benches of a run share: the models, the corpus, the layers asked."""

    model: LanguageModel
    verbalizer: LanguageModel
    corpus: Corpus
    layers: tuple[int, ...]
    seed: int
    residuals: ResidualCache = field(default_factory=lambda: ResidualCache(None))

    @cached_property
    def target(self) -> Target:
        """The target as inspectors may use it."""
        return Target(self.model)

    @property
    def captured(self) -> tuple[int, ...]:
        """The layers to read: those asked, and the embeddings, which are a rival."""
        return tuple(sorted({0, *self.layers}))


@dataclass(frozen=True)
class Bench:
    """The items of one relation at one site.

    Attributes:
        lab: models and layers.
        relation: for question, answers and forms.
        items: test items.
        train_items: one item a subject, in other phrasings; its residuals are only captured for methods that learn
            labels.
        silent: whether descriptions that the relation asks for are left out.
    """

    lab: Lab
    relation: Relation
    items: tuple[Item, ...]
    train_items: tuple[Item, ...]
    silent: bool = field(default=False, kw_only=True)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer of the relation."""
        return self.relation.answers

    @property
    def subjects(self) -> frozenset[str]:
        """Whom the test items are about."""
        return frozenset(item.subject for item in self.items)

    @property
    def question(self) -> str:
        """The inspection prompt of the relation.

        Raises:
            NotApplicableError: it asks no question (prose).
        """
        if not self.relation.inspection:
            raise NotApplicableError(NO_QUESTION)
        return self.relation.inspection[0]

    @property
    def forms(self) -> tuple[str, ...]:
        """Every text that asks the relation's question about a subject, the inspection prompt first.

        Raises:
            NotApplicableError: it asks no question (prose).
        """
        if not self.relation.inspection:
            raise NotApplicableError(NO_QUESTION)
        return forms_of(self.relation)

    def _readings(self, items: Sequence[Item]) -> list[Reading]:
        return [find_site(self.lab.model, item) for item in items]

    def _capture(self, items: Sequence[Item]) -> Residuals:
        return self.lab.residuals.read(self.lab.model, self._readings(items), self.lab.captured)

    @cached_property
    def residuals(self) -> Residuals:
        """The test items' residuals."""
        return self._capture(self.items)

    @cached_property
    def train_residuals(self) -> Residuals:
        """The training items' residuals."""
        return self._capture(self.train_items)

    def component(self, name: Component) -> Residuals:
        """Return a part of the blocks at the test items' read sites, captured once."""
        if name not in self._components:
            texts = [reading.ids for reading in self._readings(self.items)]
            values = capture_component(self.lab.model, texts, name, self.lab.captured)
            self._components[name] = Residuals(self.lab.captured, values)
        return self._components[name]

    @cached_property
    def _components(self) -> dict[Component, Residuals]:
        return {}

    def evidence(
        self, reads: frozenset[Source], items: Sequence[int], layers: Sequence[int], change: Change | None = None
    ) -> Evidence:
        """Return what a method that reads these sources may see of these items.

        Args:
            reads: the sources.
            items: which of the test items.
            layers: at which layers.
            change: what a rival does to whatever is read of the activations, before it is shown.
        """
        activation = "activation" in reads
        chosen = tuple(items)

        def seen(found: Residuals) -> Residuals:
            return (change(found) if change else found).at(layers).of(chosen)

        return Evidence(
            answers=self.answers,
            choices=tuple(self.items[i].choices for i in items),
            layers=tuple(layers) if activation else (),
            residuals=seen(self.residuals) if activation else None,
            question=self.question if "question" in reads else None,
            forms=self.forms if "question" in reads else (),
            texts=_texts(self.items[i] for i in items) if "text" in reads else None,
            components=Components(lambda name: seen(self.component(name))) if "components" in reads else None,
            runs=TargetRuns(self.lab.model, self.items, chosen, change) if "target" in reads else None,
            describe=0 if self.silent else self.relation.describe,
        )

    def training(
        self, method: type[Inspector], fold: int | None, layers: Sequence[int], labels: Labels | None
    ) -> Training:
        """Return what a method may learn from: the corpus, or the training items outside the fold, or nothing.

        Args:
            method: whose `learns_from` and `reads` decide.
            fold: the fold to be tested; None for what learns no labels.
            layers: the layers that it will be asked about.
            labels: answers by subject, in place of the true ones.
        """
        if method.learns_from == "corpus":
            return Training(corpus=self.lab.corpus)
        if method.learns_from == "nothing":
            return Training()
        places = [i for i, item in enumerate(self.train_items) if item.fold != fold]
        items = [self.train_items[i] for i in places]
        number = {name: i for i, name in enumerate(sorted({item.subject for item in items}))}
        return Training(
            answers=self.answers,
            groups=tuple(number[item.subject] for item in items),
            read=(lambda: self.train_residuals.at(layers).of(places)) if "activation" in method.reads else None,
            texts=_texts(items) if "text" in method.reads else None,
            labels=tuple(item.answer if labels is None else labels[item.subject] for item in items),
            question=self.question if "question" in method.reads else None,
            runs=TargetRuns(self.lab.model, items) if "target" in method.reads else None,
        )

    def method(self, make: Callable[[], Inspector], fitted: dict[object, Inspector] | None = None) -> "Method":
        """Put an inspector to work on this bench."""
        return Method(make, self, {} if fitted is None else fitted)


def _texts(items: Iterable[Item]) -> tuple[Text, ...]:
    return tuple(Text(item.source, item.mention) for item in items)


@dataclass
class Method:
    """One inspector at work on one bench.

    Attributes:
        make: makes the inspector, unfitted.
        bench: what it works on.
        fitted: inspectors already fitted, shared by the method and its rivals; what learns no labels is fitted once a
            run.
        costs: what the fits took that were made here.
    """

    make: Callable[[], Inspector]
    bench: Bench
    fitted: dict[object, Inspector] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    @cached_property
    def inspector(self) -> Inspector:
        """An unfitted inspector, for its declarations."""
        return self.make()

    def fit(self, fold: int | None, layers: tuple[int, ...], labels: Labels | None = None) -> Inspector:
        """Return the inspector fitted for one test fold.

        Raises:
            NotApplicableError: it cannot answer the relation's questions.
        """
        learns = self.inspector.learns_from == "labels"
        key: object = (
            (self.bench.relation.name, self.bench.items[0].site, fold, layers, _frozen(labels)) if learns else ()
        )
        if key not in self.fitted:
            lab = self.bench.lab
            training = self.bench.training(type(self.inspector), fold, layers, labels)
            before, begun = replace(lab.corpus.spent), time.perf_counter()
            self.fitted[key] = self.make().fit(lab.target, lab.verbalizer, training)
            learned = lab.corpus.spent.seconds - before.seconds
            self.costs.add(
                Costs(
                    learned or time.perf_counter() - begun,
                    lab.corpus.spent.tokens - before.tokens,
                    len(training.labels or ()),
                    peak_memory(),
                )
            )
        return self.fitted[key]

    def scores(self, layers: tuple[int, ...] | None = None, change: Change | None = None) -> Scores:
        """Score all test items, each by an inspector that has not learned from its fold.

        Args:
            layers: other layers than those asked.
            change: what a rival does to the test residuals before they are shown.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        bench = self.bench
        if "activation" not in self.inspector.reads:
            layers = ()
        elif layers is None:
            layers = bench.lab.layers
        every = range(len(bench.items))
        if self.inspector.learns_from != "labels":
            return self._inspect(self.fit(None, layers), every, layers, change)
        # A relation that one fold cannot be trained for is not scored at all: all folds are fitted before any is
        # tested.
        fitted = {fold: self.fit(fold, layers) for fold in range(N_FOLDS)}
        folds = {fold: [i for i in every if bench.items[i].fold == fold] for fold in fitted}
        parts = [(places, self._inspect(fitted[f], places, layers, change)) for f, places in folds.items() if places]
        return merged(parts)

    def scores_with(self, fold: int, labels: Labels | None, items: Sequence[int]) -> Scores:
        """Score some items by the inspector that is fitted for a fold, on true labels or others."""
        layers = self.bench.lab.layers if "activation" in self.inspector.reads else ()
        return self._inspect(self.fit(fold, layers, labels), items, layers)

    def _inspect(
        self, inspector: Inspector, items: Sequence[int], layers: Sequence[int], change: Change | None = None
    ) -> Scores:
        scores = inspector.inspect(self.bench.evidence(inspector.reads, items, layers, change))
        expected = (max(1, len(layers)), len(scores.attempts), len(items), len(self.bench.answers))
        if tuple(scores.log_scores.shape) != expected:
            raise ValueError(
                f"{inspector.name} returned log_scores of shape {tuple(scores.log_scores.shape)}, expected (layer, "
                f"attempt, item, answer) = {expected}"
            )
        if scores.texts is not None and scores.texts.shape != expected[:3]:
            raise ValueError(
                f"{inspector.name} returned texts of shape {scores.texts.shape}, expected (layer, attempt, item) = "
                f"{expected[:3]}"
            )
        for name, values in scores.measures.items():
            if values.shape != expected[:3]:
                raise ValueError(
                    f"{inspector.name} returned {name} of shape {values.shape}, expected (layer, attempt, item) = "
                    f"{expected[:3]}"
                )
        if len(set(scores.attempts)) < len(scores.attempts):
            raise ValueError(f"{inspector.name} gave two attempts one name: {', '.join(scores.attempts)}")
        if bool(torch.isnan(scores.log_scores).any()):
            raise ValueError(f"{inspector.name} returned a score that is not a number; give -inf to impossible answers")
        return scores


def _frozen(labels: Labels | None) -> tuple[tuple[str, str], ...] | None:
    return tuple(sorted(labels.items())) if labels is not None else None


def merged(parts: Sequence[tuple[list[int], Scores]]) -> Scores:
    """Put the folds' scores back in the order of the items."""
    order = torch.tensor([i for places, _ in parts for i in places]).argsort()
    scores = [part for _, part in parts]
    log_scores = torch.cat([part.log_scores.cpu() for part in scores], dim=2)[:, :, order]
    ranks, texts = [[getattr(part, name) for part in scores] for name in ("ranks", "texts")]
    found = {name: [part.measures[name] for part in scores] for name in scores[0].measures}
    return Scores(
        scores[0].attempts,
        log_scores,
        None if any(part is None for part in ranks) else torch.cat([part.cpu() for part in ranks], dim=2)[:, :, order],
        None if any(part is None for part in texts) else np.concatenate(texts, axis=2)[:, :, order.numpy()],
        {name: np.concatenate(parts, axis=2)[:, :, order.numpy()] for name, parts in found.items()},
    )
