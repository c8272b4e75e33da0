"""The bench: the items of one relation at one read site, their activations, and what a method is shown of them."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.harness.context import RunContext
from lensbench.harness.isolation import sealed_unless_declared
from lensbench.harness.scoring import confidence_totals, prediction_columns, text_measures, whole_answer_measures
from lensbench.inspectors.access import Change, Components, TargetRuns
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Source, SourceText, Training
from lensbench.inspectors.scores import Scores
from lensbench.models.activations import Reading, Residuals, find_site
from lensbench.models.component_capture import Component, capture_component
from lensbench.models.language_model import LanguageModel
from lensbench.results.records import Columns, add_totals, per_item
from lensbench.tasks.facts import N_FOLDS, Relation
from lensbench.tasks.items import Item

NO_QUESTION = "prose asks no question"


def forms_of(relation: Relation) -> tuple[str, ...]:
    """Return every text that asks a relation's question about a subject, the inspection prompt first."""
    return tuple(dict.fromkeys([*relation.inspection, *relation.questions]))


@dataclass
class Captured:
    """Activations read for a bench; shared by every bench that asks about the same items of the same model."""

    residuals: Residuals | None = None
    train_residuals: Residuals | None = None
    components: dict[Component, Residuals] = field(default_factory=dict)
    in_other_models: dict[tuple[LanguageModel, tuple[int, ...]], "Bench"] = field(default_factory=dict)
    interchanges: dict[Hashable, dict[str, Tensor]] = field(default_factory=dict)


class AnswersOf:
    """Makes columns of records from scores of a relation's answers.

    Attributes:
        relation: the relation.
    """

    relation: Relation

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer of the relation."""
        return self.relation.answers

    def columns(
        self, items: Sequence[Item], scores: Scores, layers: Sequence[int | None], *, correct_prior: bool
    ) -> Columns:
        """Return the columns of the records that depend on the scores; see `prediction_columns`."""
        return prediction_columns(items, self.answers, scores, layers, correct_prior=correct_prior)

    def measures(self, items: Sequence[Item], scores: Scores, layers: Sequence[int | None]) -> Columns:
        """Return the columns of what was measured besides: the quality of texts, and the method's own measures."""
        texts, totals = text_measures(items, scores)
        whole = whole_answer_measures(items, self.answers, scores)
        columns = per_item({**texts, **whole, **scores.measures}, layers, scores.attempts, items)
        totals |= confidence_totals(items, self.answers, scores)
        return add_totals(columns, {**totals, **scores.totals}, layers, scores.attempts)


@dataclass(frozen=True)
class Bench(AnswersOf):
    """The items of one relation at one site.

    Attributes:
        context: models and layers.
        relation: for question, answers and forms.
        items: test items.
        train_items: one item a subject, in other phrasings; their residuals are captured for methods that learn labels.
        silent: whether descriptions that the relation asks for are left out.
        change: what a baseline does to all activations before a method is shown them.
        captured: what has been read so far. `dataclasses.replace` starts it anew; the methods below keep it.
    """

    context: RunContext
    relation: Relation
    items: tuple[Item, ...]
    train_items: tuple[Item, ...]
    silent: bool = field(default=False, kw_only=True)
    change: Change | None = field(default=None, kw_only=True)
    captured: Captured = field(default_factory=Captured, init=False, repr=False, compare=False)

    @property
    def subjects(self) -> frozenset[str]:
        """The subjects of the test items."""
        return frozenset(item.subject for item in self.items)

    @property
    def question(self) -> str:
        """The inspection prompt of the relation.

        Raises:
            NotApplicableError: it asks no question (prose).
        """
        return self.forms[0]

    @property
    def forms(self) -> tuple[str, ...]:
        """Every text that asks the relation's question about a subject, the inspection prompt first.

        Raises:
            NotApplicableError: it asks no question (prose).
        """
        if not self.relation.inspection:
            raise NotApplicableError(NO_QUESTION)
        return forms_of(self.relation)

    def with_model(self, model: LanguageModel) -> "Bench":
        """Return the same items read from another model in the target's place; its activations are kept, too."""
        if model is self.context.model:
            return self
        others, key = self.captured.in_other_models, (model, self.context.layers)
        if key not in others:
            others[key] = replace(self, context=self.context.with_model(model))
        return others[key]

    def with_verbalizer(self, verbalizer: LanguageModel) -> "Bench":
        """Return the bench with another model that turns activations into words."""
        return self._sharing(replace(self, context=replace(self.context, verbalizer=verbalizer)))

    def with_layers(self, layers: tuple[int, ...]) -> "Bench":
        """Return the bench asked at fewer layers; what was captured at all of them serves it."""
        return self._sharing(replace(self, context=self.context.with_layers(layers)))

    def with_activations(self, change: Change) -> "Bench":
        """Return the bench with changed activations shown to the methods, in place of those captured."""
        return self._sharing(replace(self, change=change))

    def with_answers(self, items: tuple[Item, ...], train_items: tuple[Item, ...]) -> "Bench":
        """Return the bench with the same items under other gold answers."""
        return self._sharing(replace(self, items=items, train_items=train_items))

    def with_captured(self, residuals: Residuals, train_residuals: Residuals) -> "Bench":
        """Return the bench with these activations, as if they had been captured."""
        other = replace(self)
        other.captured.residuals, other.captured.train_residuals = residuals, train_residuals
        return other

    def with_learnable_classes(self, least: int) -> "Bench":
        """Return the bench without the answers that too few subjects have, and without the items about them.

        Args:
            least: how many training subjects each answer needs, whichever fold is tested. If fewer than two answers of
                a choice set have as many, all stay: the method then says itself why it cannot learn the relation.
        """
        subjects = {(item.subject, item.fold, item.answer) for item in self.train_items}
        whole = Counter(answer for _, _, answer in subjects)
        by_fold = Counter((answer, fold) for _, fold, answer in subjects)
        kept = {a for a in self.answers if whole[a] - max(by_fold[a, fold] for fold in range(N_FOLDS)) >= least}
        sets = [tuple(a for a in choices if a in kept) for choices in self.relation.choice_sets]
        if len(kept) == len(self.answers) or not all(len(choices) > 1 for choices in sets):
            return self

        def among(items: tuple[Item, ...]) -> tuple[list[int], tuple[Item, ...]]:
            places = [i for i, item in enumerate(items) if item.answer in kept]
            return places, tuple(
                replace(items[i], choices=tuple(a for a in items[i].choices if a in kept)) for i in places
            )

        (places, items), (train_places, train_items) = among(self.items), among(self.train_items)
        relation = replace(self.relation, choice_sets=tuple(sets))
        other = replace(self, relation=relation, items=items, train_items=train_items)
        return other.with_captured(self.residuals.at_items(places), self.train_residuals.at_items(train_places))

    def without_descriptions(self) -> "Bench":
        """Return the bench without requests for descriptions."""
        return self._sharing(replace(self, silent=True))

    def _sharing(self, other: "Bench") -> "Bench":
        object.__setattr__(other, "captured", self.captured)
        return other

    def readings(self, items: Sequence[Item]) -> list[Reading]:
        """Find the read sites of items."""
        return [find_site(self.context.model, item) for item in items]

    def capture(self, readings: Sequence[Reading], layers: Sequence[int] | None = None) -> Residuals:
        """Read the residual stream at the end of each text; from the cache where it is there.

        Args:
            readings: the texts.
            layers: where; None for the layers to read.
        """
        context, at = self.context, self.context.captured_layers if layers is None else tuple(layers)
        found = context.residuals.read(context.model, readings, context.source_layers(at))
        return replace(found, layers=at)

    @property
    def residuals(self) -> Residuals:
        """The test items' residuals, captured on first access."""
        if self.captured.residuals is None:
            self.captured.residuals = self.capture(self.readings(self.items))
        return self.captured.residuals

    def residuals_at(self, layers: Iterable[int]) -> Residuals:
        """Return the test items' residuals at these layers and all others that are kept."""
        if more := sorted(set(layers) - set(self.residuals.layers)):
            self.captured.residuals = self.residuals.joined(self.capture(self.readings(self.items), more))
        return self.residuals

    @property
    def train_residuals(self) -> Residuals:
        """The training items' residuals, captured on first access."""
        if self.captured.train_residuals is None:
            self.captured.train_residuals = self.capture(self.readings(self.train_items))
        return self.captured.train_residuals

    def component(self, name: Component) -> Residuals:
        """Return a part of the blocks at the test items' read sites, captured on first access."""
        kept = self.captured.components
        if name not in kept:
            texts = [reading.ids for reading in self.readings(self.items)]
            layers = self.context.captured_layers
            values = capture_component(self.context.model, texts, name, self.context.source_layers(layers))
            kept[name] = Residuals(layers, values)
        return kept[name]

    def shown(self, captured: Residuals) -> Residuals:
        """Return activations of all test items as methods are shown them.

        Raises:
            LensbenchError: a baseline has changed the last of several vectors alone.
        """
        if self.change is None:
            return captured
        changed = self.change(captured)
        if captured.before is not None and changed.before is None:
            raise LensbenchError(
                f"a baseline changes one vector of the site {self.items[0].site}, which has several; have it return "
                "captured.change(f), which changes all of them"
            )
        return changed

    def evidence(
        self, reads: frozenset[Source], items: Sequence[int], layers: Sequence[int], shown: Sequence[int] | None = None
    ) -> Evidence:
        """Return what a method that reads these sources may see of these items.

        Args:
            reads: the sources.
            items: which of the test items.
            layers: at which layers it is asked.
            shown: whose layers' activations it sees; by default those.
        """
        activation = "activation" in reads
        chosen, seen = tuple(items), tuple(layers if shown is None else shown)

        def read(name: Component) -> Residuals:
            return self.shown(self.component(name)).at_layers(layers).at_items(chosen)

        return Evidence(
            answers=self.answers,
            choices=tuple(self.items[i].choices for i in items) if "choices" in reads else None,
            layers=tuple(layers) if activation else (),
            residuals=self.shown(self.residuals_at(seen).at_layers(seen)).at_items(chosen) if activation else None,
            question=self.question if "question" in reads else None,
            forms=self.forms if "question" in reads else (),
            texts=_texts(self.items[i] for i in items) if "text" in reads else None,
            components=Components(read) if "components" in reads else None,
            runs=TargetRuns(self.context.model, self.items, chosen, self.change) if "target" in reads else None,
            describe=0 if self.silent else self.relation.describe,
            n_items=len(chosen),
            whole_answers=self.context.whole_answers,
        )

    def training(
        self, inspector: Inspector, fold: int | None, layers: Sequence[int], labels: dict[str, str] | None
    ) -> Training:
        """Return what a method may learn from: the corpus, or the training items outside the fold, or nothing.

        Args:
            inspector: whose `learns_from` and `reads` decide.
            fold: the fold to be tested; None for what learns no labels.
            layers: the layers that it will be asked about.
            labels: answers by subject, in place of the true ones.
        """
        reads = inspector.reads
        if inspector.learns_from == "corpus":
            return Training(corpus=self.context.corpus)
        if inspector.learns_from == "nothing":
            return Training()
        places = [i for i, item in enumerate(self.train_items) if item.fold != fold]
        items = [self.train_items[i] for i in places]
        number = {name: i for i, name in enumerate(sorted({item.subject for item in items}))}
        return Training(
            answers=self.answers,
            groups=tuple(number[item.subject] for item in items),
            read=(lambda: self.train_residuals.at_layers(layers).at_items(places)) if "activation" in reads else None,
            texts=_texts(items) if "text" in reads else None,
            labels=tuple(item.answer if labels is None else labels[item.subject] for item in items),
            question=self.question if "question" in reads else None,
            runs=TargetRuns(self.context.model, items) if "target" in reads else None,
        )

    def check(self, inspector: Inspector) -> None:
        """Refuse a method that cannot answer the relation's questions, before it is fitted.

        Raises:
            NotApplicableError: the method cannot answer.
        """

    def score(self, inspector: Inspector, items: Sequence[int], layers: Sequence[int]) -> Scores:
        """Have a fitted method score some items, while nothing runs the target unless the method declares it.

        Raises:
            LensbenchError: to answer at a layer, it reads a deeper one.
        """
        evidence = self.evidence(inspector.reads, items, layers, layers_shown(inspector, layers))
        context = self.context
        with sealed_unless_declared(context.model, context.verbalizer, inspector.name, inspector.reads):
            scores = inspector.inspect(evidence)
        scores.validate(inspector.name, (max(1, len(layers)), len(items), len(self.answers)))
        return scores


def layers_shown(inspector: Inspector, layers: Iterable[int]) -> tuple[int, ...]:
    """Return the layers whose activations a method is shown when it is asked at these layers.

    Raises:
        LensbenchError: to answer at a layer, it reads a deeper one.
    """
    seen = set()
    for layer in layers:
        if max(read := inspector.layers_read(layer)) > layer:
            raise LensbenchError(
                f"{inspector.name}.layers_read({layer}) names layer {max(read)}; a method may read only the layer that "
                "it answers at and those below it"
            )
        seen |= {layer, *read}
    return tuple(sorted(seen))


def _texts(items: Iterable[Item]) -> tuple[SourceText, ...]:
    return tuple(SourceText(item.source, item.mention) for item in items)
