"""What the harness shows to an inspector."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.inspectors.access import Components, TargetRuns
from lensbench.models.activations import Residuals
from lensbench.models.corpus import Corpus

__all__ = ["Evidence", "Learns", "NotApplicableError", "Source", "SourceText", "Training", "WithheldError"]

Source = Literal["activation", "question", "choices", "text", "components", "target"]
Learns = Literal["nothing", "corpus", "labels"]
Shown = TypeVar("Shown")


class WithheldError(LensbenchError, AttributeError):
    """An inspector reached for something that it does not declare in `reads` or `learns_from`."""


class Withheld(Generic[Shown]):
    """A field that raises where the harness has withheld its value, so that no method needs to check for None.

    Args:
        declaration: what a method declares to be shown the value.
    """

    def __init__(self, declaration: str) -> None:
        self.declaration = declaration

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> None: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Shown: ...

    def __get__(self, instance: object | None, owner: type) -> Shown | None:
        if instance is None:
            return None  # the field's default
        value: Shown | None = instance.__dict__[self.name]
        if value is None:
            kind = type(instance).__name__.lower()
            raise WithheldError(f"the {kind} has no `{self.name}`: the method does not declare {self.declaration}")
        return value

    def __set__(self, instance: object, value: Shown | None) -> None:
        instance.__dict__[self.name] = value


if TYPE_CHECKING:
    MaybeWithheld = Withheld
else:

    class MaybeWithheld:
        """What type checkers see as the descriptor, a field's constructor takes as its value or None."""

        def __class_getitem__(cls, kind: Any) -> Any:
            return kind | None


class _Partial:
    """Something of which a method is shown only what it declares."""

    def shows(self, name: str) -> bool:
        """Return whether a field holds a value, in place of being withheld."""
        return vars(self)[name] is not None


@dataclass(frozen=True)
class SourceText:
    """A source text and the subject in it."""

    source: str
    subject: str


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(_Partial):
    """Items of one relation at one read site, as far as the inspector declared that it reads them. No gold answer.

    Attributes:
        answers: every answer of the relation, in alphabetical order; all are to be scored.
        choices: with `choices`: each item's own choice set, alphabetical.
        layers: the layers to answer at; empty for a method that does not read activations.
        residuals: with `activation`.
        question: with `question`: the inspection prompt; its slot `{subject}` stays unfilled.
        forms: with `question`: that, and every other text that asks the same, their slots unfilled.
        texts: with `text`.
        components: with `components`: the parts of blocks at the read sites.
        runs: with `target`: the target on the items' own sources, or on questions about them.
        describe: how many tokens a method that generates is asked to say of each item; 0 asks for no text.
        n_items: how many items there are.
        whole_answers: whether a method that generates is asked to score answers to their last token besides.

    Raises:
        WithheldError: on access to a field that the method does not declare.
    """

    answers: tuple[str, ...]
    choices: MaybeWithheld[tuple[tuple[str, ...], ...]] = Withheld("`choices` in `reads`")
    layers: tuple[int, ...] = ()
    residuals: MaybeWithheld[Residuals] = Withheld("`activation` in `reads`")
    question: MaybeWithheld[str] = Withheld("`question` in `reads`")
    forms: tuple[str, ...] = ()
    texts: MaybeWithheld[tuple[SourceText, ...]] = Withheld("`text` in `reads`")
    components: MaybeWithheld[Components] = Withheld("`components` in `reads`")
    runs: MaybeWithheld[TargetRuns] = Withheld("`target` in `reads`")
    describe: int = 0
    n_items: int = 0
    whole_answers: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Training(_Partial):
    """What an inspector may learn from: other subjects and other phrasings than it is tested on.

    Attributes:
        answers: every answer of the relation.
        groups: a number for each training item's subject; what is selected inside the training items is split by them.
        read: reads the training items' activations, for what learns labels and reads activations; see `residuals`.
        texts: the training items', for what learns labels and reads text.
        labels: the training items' answers, for what learns labels.
        question: the inspection prompt, its slot unfilled, for what learns labels and reads the question.
        runs: the target on texts about the training items, for what learns labels and reads `target`.
        corpus: for what learns from a corpus.

    Raises:
        WithheldError: on access to a field that the method does not declare.
    """

    answers: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    read: MaybeWithheld[Callable[[], Residuals]] = Withheld("`activation` in `reads` and learns_from = 'labels'")
    texts: MaybeWithheld[tuple[SourceText, ...]] = Withheld("`text` in `reads` and learns_from = 'labels'")
    labels: MaybeWithheld[tuple[str, ...]] = Withheld("learns_from = 'labels'")
    question: MaybeWithheld[str] = Withheld("`question` in `reads` and learns_from = 'labels'")
    runs: MaybeWithheld[TargetRuns] = Withheld("`target` in `reads` and learns_from = 'labels'")
    corpus: MaybeWithheld[Corpus] = Withheld("learns_from = 'corpus'")

    @cached_property
    def residuals(self) -> Residuals:
        """The training items' activations, read on first access: a method that refuses its labels costs no pass."""
        return self.read()
