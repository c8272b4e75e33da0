"""Cross-fitting: a method at work on a bench, each item scored by a fit that has not learned from its fold."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lensbench.harness.bench import Bench
from lensbench.harness.isolated_fits import IsolatedFits
from lensbench.inspectors.access import Change
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.scores import Scores
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.items import Item
from lensbench.utils.costs import Costs, peak_memory

Labels = Mapping[str, str]
EXCHANGEABLE = (frozenset({"activation"}), frozenset({"activation", "question"}))
"""What a method reads whose activations can be exchanged between items, everything else staying as it is."""
Fits = dict[object, Inspector]


@dataclass(frozen=True)
class Outcome:
    """The answers of a method or a baseline.

    Attributes:
        scores: as a method returns them.
        layers: the layers of their first axis; (None,) for what reads no layer.
        items: the items scored, their `answer` changed where the baseline asks for another.
        zero_shot: whether it learned no labels, and is corrected for its prior.
        credited_as_chance: for each item a wrong answer that gets the credit of a guess; None where there is none.
        exchangeable: whether any of the vectors that were read could be read for any item, and the credit for all pairs
            is to be kept.
    """

    scores: Scores
    layers: tuple[int | None, ...]
    items: tuple[Item, ...]
    zero_shot: bool
    credited_as_chance: tuple[str, ...] | None = None
    exchangeable: bool = False


@dataclass
class CrossFit:
    """One inspector at work on one bench.

    Attributes:
        make: makes the inspector, unfitted.
        bench: what it works on.
        fitted: inspectors already fitted, shared by the method and its baselines; what learns no labels is fitted once
            a run.
        costs: what the fits took that were made here.
        isolated: makes each fit in a process of its own; None makes them all in this one.
    """

    make: Callable[[], Inspector]
    bench: Bench
    fitted: Fits = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    isolated: IsolatedFits | None = None

    @cached_property
    def inspector(self) -> Inspector:
        """An unfitted inspector, for its declarations."""
        return self.make()

    @property
    def learns_labels(self) -> bool:
        """Whether the method learns from labelled items; if not, its scores are corrected for the answers' prior."""
        return self.inspector.learns_from == "labels"

    @property
    def exchangeable(self) -> bool:
        """Whether the method reads nothing of an item but its activation and its relation's question.

        Its scores then say what each item would earn under the activation of any other.
        """
        reads = self.inspector.reads
        return reads in EXCHANGEABLE and bool(self.bench.relation.inspection)

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The first axis of its scores: the layers read; (None,) for a method that reads none."""
        return self._layers() or (None,)

    def _layers(self, layers: tuple[int, ...] | None = None) -> tuple[int, ...]:
        if "activation" not in self.inspector.reads:
            return ()
        return self.bench.context.layers if layers is None else layers

    def with_bench(self, bench: Bench) -> "CrossFit":
        """Return the method at work on another bench, with its own fits."""
        return replace(self, bench=bench)

    def with_layers(self, layers: tuple[int, ...]) -> "CrossFit":
        """Return the method, with its own fits, asked at other layers."""
        return self.with_bench(self.bench.with_layers(layers))

    def with_activations(self, change: Change) -> "CrossFit":
        """Return the method, with its own fits, shown changed activations."""
        return self.with_bench(self.bench.with_activations(change))

    def with_model(self, model: LanguageModel) -> "CrossFit":
        """Return the method at work on another model's activations of the same texts.

        What learns labels learns them from these activations; what does not keeps its fit for the target.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        if not self.learns_labels:
            self.fit(None, self._layers())
        return self.with_bench(self.bench.with_model(model))

    def fit(self, fold: int | None, layers: tuple[int, ...], labels: Labels | None = None) -> Inspector:
        """Return the inspector fitted for one test fold.

        Raises:
            NotApplicableError: it cannot answer the relation's questions.
        """
        key: object = self._key(fold, layers, labels) if self.learns_labels else ()
        if key not in self.fitted:
            context = self.bench.context
            given = dict(labels) if labels is not None else None
            training = self.bench.training(self.inspector, fold, layers, given)
            context.corpus.spent.split_half = ()
            before, start = replace(context.corpus.spent), time.perf_counter()
            self.fitted[key], memory = self._fit(training)
            corpus_seconds = context.corpus.spent.seconds - before.seconds
            self.costs.add(
                Costs(
                    corpus_seconds or time.perf_counter() - start,
                    context.corpus.spent.tokens - before.tokens,
                    len(training.groups),
                    memory,
                    context.corpus.spent.split_half,
                )
            )
        return self.fitted[key]

    def _fit(self, training: Training) -> tuple[Inspector, int]:
        """Return a fitted inspector, and the most MiB that the process had held that fitted it."""
        context = self.bench.context
        if self.isolated is not None:
            return self.isolated.fit(self.make, context, training)
        return self.make().fit(context.target, context.verbalizer, training), peak_memory()

    def _key(self, fold: int | None, layers: tuple[int, ...], labels: Labels | None) -> tuple[object, ...]:
        """What a fit on labels depends on. Baselines that read one and the same other model share its fits."""
        bench = self.bench
        frozen = tuple(sorted(labels.items())) if labels is not None else None
        return bench.relation.name, bench.items[0].site, bench.context.model.fingerprint, fold, layers, frozen

    def scores(self, layers: tuple[int, ...] | None = None) -> Scores:
        """Score all test items, each by an inspector that has not learned from its fold.

        Args:
            layers: other layers than those asked.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        bench, layers = self.bench, self._layers(layers)
        bench.check(self.inspector)
        every = range(len(bench.items))
        if not self.learns_labels:
            return bench.score(self.fit(None, layers), every, layers)
        # A relation that one fold cannot be trained for is not scored at all: all folds are fitted before any is
        # tested.
        fitted = {fold: self.fit(fold, layers) for fold in sorted({item.fold for item in bench.items})}
        tested = {fold: [i for i in every if bench.items[i].fold == fold] for fold in fitted}
        parts = [bench.score(fitted[fold], items, layers) for fold, items in tested.items()]
        return Scores.concat(parts, [i for items in tested.values() for i in items], axis="item")

    def outcome(self) -> Outcome:
        """Return the method's own answers to all test items.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        return Outcome(self.scores(), self.layers, self.bench.items, not self.learns_labels)

    def exchangeable_outcome(self) -> Outcome:
        """Return the method's own answers, with their credit for all pairs of items where that can be known.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        return replace(self.outcome(), exchangeable=self.exchangeable)

    def scores_with(self, fold: int, labels: Labels | None, items: Sequence[int]) -> Scores:
        """Score some items by the inspector that is fitted for a fold, on true labels or others."""
        self.bench.check(self.inspector)
        layers = self._layers()
        return self.bench.score(self.fit(fold, layers, labels), items, layers)
