"""What the harness lets an inspector see, and what it gets back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensbench.corpus import Corpus
from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.handles import Components, TargetRuns
from lensbench.model.directions import token_directions
from lensbench.model.language_model import LanguageModel, TokenScores
from lensbench.model.memory import RowMemory
from lensbench.model.tuned_lens_files import Home, home_of
from lensbench.residuals import Residuals

__all__ = ["Evidence", "Learns", "NotApplicableError", "Scores", "Source", "Target", "Text", "Training"]

Source = Literal["activation", "question", "text", "components", "target"]
Learns = Literal["nothing", "corpus", "labels"]


@dataclass(frozen=True)
class Text:
    """A source text and the subject in it."""

    source: str
    subject: str


@dataclass(frozen=True)
class Evidence:
    """Items of one relation at one read site, as far as the inspector declared that it reads them. No gold answer.

    Attributes:
        answers: every answer of the relation, in alphabetical order; all are to be scored.
        choices: each item's own choice set, alphabetical.
        layers: the layers to answer at; empty for a method that does not read activations.
        residuals: with `activation`.
        question: with `question`: the inspection prompt; its slot `{subject}` stays unfilled.
        texts: with `text`.
        components: with `components`: the parts of blocks at the read sites.
        runs: with `target`: the target on the items' own sources, or on questions about them.
        describe: how many tokens a method that generates is asked to say of each item; 0 asks for no text.
    """

    answers: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...] = ()
    residuals: Residuals | None = None
    question: str | None = None
    texts: tuple[Text, ...] | None = None
    components: Components | None = None
    runs: TargetRuns | None = None
    describe: int = 0


@dataclass(frozen=True)
class Training:
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
    """

    answers: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    read: Callable[[], Residuals] | None = None
    texts: tuple[Text, ...] | None = None
    labels: tuple[str, ...] | None = None
    question: str | None = None
    runs: TargetRuns | None = None
    corpus: Corpus | None = None

    @cached_property
    def residuals(self) -> Residuals:
        """The training items' activations, read when first asked for: a method that refuses its labels costs no pass.

        Raises:
            LensbenchError: the method does not declare that it reads activations, or learns no labels.
        """
        if self.read is None:
            raise LensbenchError(
                "there are no training activations for what does not read `activation` or learn `labels`"
            )
        return self.read()


@dataclass(frozen=True)
class Scores:
    """Log-scores of every answer of the relation, for every item, attempt and layer.

    Attributes:
        attempts: names of the attempts; the first is the method's default.
        log_scores: higher is more likely; -inf for an answer that the method cannot give. One layer where it reads
            none.
        ranks: the answer's rank in the whole vocabulary (0 = the top), for methods that see it.
        texts: what a method that generates said, [layer, attempt, item], where the evidence asked for it.
        measures: what else the method measured, by name, such as the length of a code: [layer, attempt, item].
    """

    attempts: tuple[str, ...]
    log_scores: Float[Tensor, "layer attempt item answer"]
    ranks: Int[Tensor, "layer attempt item answer"] | None = None
    texts: Shaped[np.ndarray, "layer attempt item"] | None = None
    measures: Mapping[str, Float[np.ndarray, "layer attempt item"]] = field(default_factory=dict)


class Target:
    """The target model as an inspector may use it: its sizes, and its norm and head. It does not run on text."""

    def __init__(self, model: LanguageModel) -> None:
        self.name = model.name
        self.n_layers = model.n_layers
        self.d_model = model.d_model
        self.device = model.device
        self._model = model
        self._memory = RowMemory()

    @property
    def head_rows(self) -> int:
        """How many rows go through the head at once."""
        return self._model.head_rows

    @property
    def budget_bytes(self) -> int:
        """How many bytes a batch may take."""
        return self._model.budget.bytes

    @cached_property
    def home(self) -> Home:
        """What files of lenses call the model by, a fingerprint of its norm and head among it.

        Raises:
            LensbenchError: its head is not a module of its own.
        """
        return home_of(self._model)

    def norm(self, residuals: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return residuals of any layer after the model's own final norm, before its head. Differentiable."""
        return self._model.norm(residuals)

    def unembed(self, residuals: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return logits from the residual stream of any layer: the model's own final norm and head. Differentiable."""
        return self._model.unembed(residuals)

    def compare_answers(
        self, residuals: Float[Tensor, "row d_model"], answers: Sequence[str]
    ) -> Float[Tensor, "row answer"]:
        """Unembed residuals for the first token of each answer alone: logits, which compare as log-probabilities do.

        Many times faster than `score_answers`, for methods that need neither ranks nor probabilities.
        """
        return self._model.token_logits(residuals, [self._model.tokens.answer_token(answer) for answer in answers])

    def answer_directions(self, answers: Sequence[str]) -> Float[Tensor, "answer d_model"]:
        """Return the direction of each answer's first token: the gradient of its logit with respect to the norm's output.

        These are the head's rows, logit scale included: norm(h) @ directions.T + bias are the model's logits of h, before
        a soft-cap. In float32, on the model's device.
        """
        return token_directions(self._model, [self._model.tokens.answer_token(answer) for answer in answers])

    def score_answers(self, residuals: Float[Tensor, "row d_model"], answers: Sequence[str]) -> TokenScores:
        """Unembed residuals and score the first token of each answer."""
        tokens = [self._model.tokens.answer_token(answer) for answer in answers]
        return self._memory.answer(tokens, residuals, lambda rows: self._model.score_tokens(rows, tokens))

    def score_answers_of(
        self,
        unembed: Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]],
        residuals: Float[Tensor, "row d_model"],
        answers: Sequence[str],
    ) -> TokenScores:
        """Score the first token of each answer by a head of the method's own, called on some rows at a time."""
        tokens = [self._model.tokens.answer_token(answer) for answer in answers]
        return self._model.score_tokens(residuals, tokens, unembed=unembed)
