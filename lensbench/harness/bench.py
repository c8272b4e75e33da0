"""The bench: the items of one relation at one read site, everything captured, and methods at work on them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lensbench.errors import NotApplicableError
from lensbench.harness.context import Lab, Relatives
from lensbench.harness.isolation import sealed_unless_declared
from lensbench.harness.returned import merged, require_shape
from lensbench.inspectors.access import Change, Components, TargetRuns
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Scores, Source, SourceText, Training
from lensbench.models.activations import Reading, Residuals, find_site
from lensbench.models.component_capture import Component, capture_component
from lensbench.models.language_model import LanguageModel
from lensbench.tasks import N_FOLDS, Item, Relation
from lensbench.utils.costs import Costs, peak_memory

__all__ = ["NO_QUESTION", "Bench", "CrossFit", "Lab", "Labels", "Relatives", "forms_of", "merged"]

Labels = Mapping[str, str]

NO_QUESTION = "prose asks no question"


def forms_of(relation: Relation) -> tuple[str, ...]:
    """Return every text that asks a relation's question about a subject, the inspection prompt first."""
    return tuple(dict.fromkeys([*relation.inspection, *relation.questions]))


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

    def on(self, model: LanguageModel) -> "Bench":
        """Return the same items read from another model in the target's place; what is captured is kept for all."""
        if model is self.lab.model:
            return self
        if model not in self._elsewhere:
            self._elsewhere[model] = replace(self, lab=self.lab.on(model))
        return self._elsewhere[model]

    @cached_property
    def _elsewhere(self) -> "dict[LanguageModel, Bench]":
        return {}

    def readings(self, items: Sequence[Item]) -> list[Reading]:
        """Find the read sites of items."""
        return [find_site(self.lab.model, item) for item in items]

    def capture(self, readings: Sequence[Reading]) -> Residuals:
        """Read the residual stream at the end of each text, at the layers to read; from the cache where it is there."""
        found = self.lab.residuals.read(self.lab.model, readings, self.lab.places)
        return Residuals(self.lab.captured, found.values)

    @cached_property
    def residuals(self) -> Residuals:
        """The test items' residuals."""
        return self.capture(self.readings(self.items))

    @cached_property
    def train_residuals(self) -> Residuals:
        """The training items' residuals."""
        return self.capture(self.readings(self.train_items))

    def component(self, name: Component) -> Residuals:
        """Return a part of the blocks at the test items' read sites, captured once."""
        if name not in self._components:
            texts = [reading.ids for reading in self.readings(self.items)]
            values = capture_component(self.lab.model, texts, name, self.lab.places)
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
            return (change(found) if change else found).at_layers(layers).at_items(chosen)

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
            read=(lambda: self.train_residuals.at_layers(layers).at_items(places))
            if "activation" in method.reads
            else None,
            texts=_texts(items) if "text" in method.reads else None,
            labels=tuple(item.answer if labels is None else labels[item.subject] for item in items),
            question=self.question if "question" in method.reads else None,
            runs=TargetRuns(self.lab.model, items) if "target" in method.reads else None,
        )

    def method(self, make: Callable[[], Inspector], fitted: dict[object, Inspector] | None = None) -> "CrossFit":
        """Put an inspector to work on this bench."""
        return CrossFit(make, self, {} if fitted is None else fitted)


def _texts(items: Iterable[Item]) -> tuple[SourceText, ...]:
    return tuple(SourceText(item.source, item.mention) for item in items)


@dataclass
class CrossFit:
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
        key: object = self._key(fold, layers, labels) if learns else ()
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

    def _key(self, fold: int | None, layers: tuple[int, ...], labels: Labels | None) -> tuple[object, ...]:
        """What a fit on labels depends on. Rivals that read one and the same other model share its fits."""
        bench = self.bench
        frozen = tuple(sorted(labels.items())) if labels is not None else None
        return bench.relation.name, bench.items[0].site, bench.lab.model.fingerprint, fold, layers, frozen

    def on(self, model: LanguageModel) -> "CrossFit":
        """Return the method at work on another model's activations of the same texts.

        What learns labels learns them from these activations; what does not keeps the fit that it has for the target.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        if self.inspector.learns_from != "labels":
            self.fit(None, self.bench.lab.layers if "activation" in self.inspector.reads else ())
        return replace(self, bench=self.bench.on(model))

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The first axis of its scores: the layers asked; (None,) for a method that reads none."""
        return self.bench.lab.layers if "activation" in self.inspector.reads else (None,)

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
        evidence = self.bench.evidence(inspector.reads, items, layers, change)
        with sealed_unless_declared(self.bench.lab.model, self.bench.lab.verbalizer, inspector.name, inspector.reads):
            scores = inspector.inspect(evidence)
        require_shape(inspector.name, scores, (max(1, len(layers)), len(items), len(self.bench.answers)))
        return scores
