"""What a method is asked in an evaluation, written down by a recorder that takes its place.

Its scores are the numbers of what it was asked: whatever a baseline does with a method's answers, selecting items or
layers and joining them, it does with the numbers, which say in the end which answer belongs where.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source, SourceText, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel

NUMBER = "number of what was asked"
"""The name of a recorder's one attempt."""
PLACEHOLDER = "x"
WITHOUT_TEXT: frozenset[Source] = frozenset({"activation", "question"})
WITH_TEXT: frozenset[Source] = WITHOUT_TEXT | {"text"}


@dataclass(frozen=True)
class Question:
    """What is asked, of any number of activations.

    Attributes:
        text: the inspection prompt, its slot unfilled.
        forms: that, and every other text that asks the same.
        answers: every answer of the relation.
        site: where activations are read.
        describe: how many tokens a method that generates is asked to say.
    """

    text: str
    forms: tuple[str, ...]
    answers: tuple[str, ...]
    site: str
    describe: int = 0


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Labelled activations of one layer.

    Attributes:
        question: that the labels answer.
        layer: of the activations.
        activations: of the training items.
        groups: a number for each item's subject.
        labels: the answers.
    """

    question: Question
    layer: int
    activations: Float[np.ndarray, "item d_model"]
    groups: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """One thing that was asked.

    Attributes:
        question: the question.
        layer: that the activation is of.
        activation: the activation.
        training: the digest of the training set that a method which learns labels was fitted on; empty for others.
        text: the source text, where a method may read it.
        same: a digest of all of it but the training set.
    """

    question: Question
    layer: int
    activation: Float[np.ndarray, " d_model"]
    training: str
    text: SourceText | None
    same: str


@dataclass
class Recording:
    """All that recorders were asked, each thing once.

    Attributes:
        site: where the items are read that are asked about now.
        asked: in the order in which it was first asked.
        training: the training sets, by digest.
        calls: how often recorders were asked anything.
    """

    site: str = ""
    asked: list[Asked] = field(default_factory=list)
    training: dict[str, TrainingSet] = field(default_factory=dict)
    calls: int = 0
    _width: int = 0
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _questions: dict[tuple[Any, ...], Question] = field(default_factory=dict)

    def question(self, text: str, forms: tuple[str, ...], answers: tuple[str, ...], describe: int = 0) -> Question:
        """Return a question, the same object for the same question."""
        key = (text, forms, answers, self.site, describe)
        return self._questions.setdefault(key, Question(*key))

    def add(self, evidence: Evidence, trained: dict[int, str]) -> Int[np.ndarray, "layer item"]:
        """Note what is asked; return a number for each activation.

        Args:
            evidence: what a method would be shown.
            trained: layer -> digest of the training set; empty for what learns no labels.

        Raises:
            NotApplicableError: activations of another width than those before.
        """
        self._check_width(evidence.residuals)
        self.calls += 1
        question = self.question(evidence.question, evidence.forms, evidence.answers, evidence.describe)
        texts: Iterable[SourceText | None] = evidence.texts if evidence.shows("texts") else [None] * evidence.n_items
        shown = list(texts)
        numbers = np.empty((len(evidence.layers), evidence.n_items), dtype=np.int64)
        for i, layer in enumerate(evidence.layers):
            values = evidence.residuals.values[i].float().cpu().numpy()
            for j, text in enumerate(shown):
                same = digest_of(question, layer, text, values[j])
                numbers[i, j] = self._number(Asked(question, layer, values[j], trained.get(layer, ""), text, same))
        return numbers

    def _check_width(self, residuals: Residuals) -> None:
        width = residuals.values.shape[-1]
        self._width = self._width or width
        if width != self._width:
            raise NotApplicableError(f"activations of width {width} do not stand beside those of width {self._width}")

    def _number(self, one: Asked) -> int:
        key = (one.same, one.training)
        if key not in self._numbers:
            self._numbers[key] = len(self.asked)
            self.asked.append(replace(one, activation=one.activation.copy()))
        return self._numbers[key]

    def learn(self, training: Training) -> dict[int, str]:
        """Note a training set; return the digest of each of its layers."""
        self._check_width(training.residuals)
        question = self.question(training.question, (), training.answers)
        found = {}
        for i, layer in enumerate(training.residuals.layers):
            values = training.residuals.values[i].float().cpu().numpy()
            one = TrainingSet(question, layer, values, training.groups, training.labels)
            found[layer] = digest_of(question, layer, training.groups, training.labels, values)
            self.training.setdefault(found[layer], one)
        return found


def require_one_layer(inspector: Inspector, layers: Iterable[int], where: str) -> None:
    """Refuse a method that reads other layers than the one asked about, where one vector is shown at a time.

    Args:
        inspector: the method.
        layers: that it is asked at.
        where: what shows one vector at a time, for the error.

    Raises:
        UsageError: it reads other layers.
    """
    for layer in layers:
        if (read := inspector.layers_read(layer)) != (layer,):
            raise UsageError(
                f"{inspector.name} reads layers {','.join(map(str, read))} to answer at layer {layer}, and {where} "
                "shows one vector at a time; choose another method"
            )


def evidence_of(
    reads: frozenset[Source],
    question: Question,
    layer: int,
    activations: Float[np.ndarray, "row d_model"],
    model: LanguageModel,
    *,
    choices: Sequence[tuple[str, ...]] = (),
    texts: Sequence[SourceText] = (),
) -> Evidence:
    """Return what a method that reads these sources may see of rows that were noted.

    Args:
        reads: the sources.
        question: of all rows.
        layer: of all rows.
        activations: of the rows.
        model: whose precision and device the activations get.
        choices: of each row, for a method that reads them.
        texts: of each row, for a method that reads them.
    """
    values = torch.from_numpy(activations).to(model.device, model.dtype)[None]
    return Evidence(
        answers=question.answers,
        choices=tuple(choices) if "choices" in reads else None,
        layers=(layer,) if "activation" in reads else (),
        residuals=Residuals((layer,), values) if "activation" in reads else None,
        question=question.text if "question" in reads else None,
        forms=question.forms if "question" in reads else (),
        texts=tuple(texts) if "text" in reads else None,
        describe=question.describe,
        n_items=len(activations),
    )


def digest_of(*parts: Any) -> str:
    """Return a digest of plain values and arrays."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


class Recorder(Inspector):
    """Records what it is asked, and answers with numbers.

    Args:
        recording: where it notes that.
        text: whether it reads the source text, too.
    """

    name: ClassVar[str] = "exam"

    def __init__(self, recording: Recording, text: bool = False) -> None:
        self.recording = recording
        self.text = text

    @property
    def reads(self) -> frozenset[Source]:  # type: ignore[override]
        """What the exam allows to be read."""
        return WITH_TEXT if self.text else WITHOUT_TEXT

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Recorder":
        """Note what there is to learn from."""
        self.trained_ = self.recording.learn(training) if self.learns_from == "labels" else {}
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Note what is asked, and return its numbers as the scores of every answer."""
        numbers = torch.from_numpy(self.recording.add(evidence, self.trained_)).double()
        return Scores((NUMBER,), numbers[:, None, :, None].expand(-1, -1, -1, len(evidence.answers)).contiguous())

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the relation's own question: what verbalizers are asked by default."""
        return OwnPrompt(question, PLACEHOLDER)

    def parameters(self) -> dict[str, Any]:
        """Return what the rows depend on."""
        return {"text": self.text}


class LearningRecorder(Recorder):
    """A recorder for methods that learn labels."""

    name: ClassVar[str] = "exam_labels"
    learns_from: ClassVar[Learns] = "labels"


def was_recorded(scores: Scores) -> bool:
    """Whether scores are those of a recorder, or made of them."""
    return NUMBER in scores.attempts


def numbers_of(scores: Scores, what: str) -> Int[np.ndarray, "layer item"]:
    """Return the numbers that the outcome of a recorder is made of.

    Args:
        scores: of the outcome.
        what: it is of, for errors.

    Raises:
        LensbenchError: the answers of recorders went into it in another way than one for each item and layer.
    """
    values = scores.log_scores.cpu().double().numpy()
    numbers = values[:, 0, :, 0]
    if len(scores.attempts) > 1 or not np.array_equal(values, np.broadcast_to(numbers[:, None, :, None], values.shape)):
        raise LensbenchError(f"{what} computes with a method's scores, which an exam does not know yet; leave it out")
    return numbers.astype(np.int64)
