"""What the harness lets an inspector see, and what it gets back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.inspectors.access import Components, TargetRuns
from lensbench.models.activations import Residuals
from lensbench.models.component_capture import (
    Component,
    head_directions,
    heads_of,
    neuron_directions,
    require_component,
    values_through_heads,
)
from lensbench.models.components import ComponentError, final_norm
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel, TokenScores
from lensbench.models.linear_parts import embed, nearest_tokens, readable_ids, token_directions
from lensbench.models.patching.patcher import RowMemory
from lensbench.models.tuned_lens_files import Home, home_of

__all__ = ["Evidence", "Learns", "NotApplicableError", "Scores", "Source", "SourceText", "Target", "Training"]

Source = Literal["activation", "question", "text", "components", "target"]
Learns = Literal["nothing", "corpus", "labels"]


@dataclass(frozen=True)
class SourceText:
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
        forms: with `question`: that, and every other text that asks the same, their slots unfilled.
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
    forms: tuple[str, ...] = ()
    texts: tuple[SourceText, ...] | None = None
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
    texts: tuple[SourceText, ...] | None = None
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
        """Return the directions in which the logits of the answers' first tokens grow, after the model's final norm.

        These are the head's rows, logit scale included: norm(h) @ directions.T + bias are the model's logits of h,
        before a soft-cap. In float32, on the model's device.
        """
        return token_directions(self._model, [self._model.tokens.answer_token(answer) for answer in answers])

    def reading_directions(self, answers: Sequence[str]) -> Float[Tensor, "answer d_model"]:
        """Return the directions of the residual stream in which the answers' logits grow, the norm's scale frozen.

        A part of the stream, times `final_scale` and along these, is what it contributes to the model's logits, before
        a soft-cap. In float32, on the model's device.

        Raises:
            ComponentError: the final norm is no RMSNorm or LayerNorm.
        """
        return final_norm(self._model).back(self.answer_directions(answers))

    def missing_component(self, name: Component) -> str | None:
        """Return why the model's blocks have no such component, in one line; None where they have it."""
        try:
            require_component(self._model, name)
        except ComponentError as error:
            return str(error)
        return None

    @property
    def heads(self) -> int:
        """How many attention heads a block has, as the model's configuration says; 0 where it says nothing."""
        return heads_of(self._model)

    def head_directions(
        self, layer: int, directions: Float[Tensor, "answer d_model"]
    ) -> Float[Tensor, "answer head head_dim"]:
        """Return what one unit of each of the `head_values` of block `layer` adds along each direction."""
        return head_directions(self._model, layer, directions)

    def neuron_directions(
        self, layer: int, directions: Float[Tensor, "answer d_model"]
    ) -> Float[Tensor, "answer neuron"]:
        """Return what one unit of each of the `neurons` of block `layer` adds along each direction."""
        return neuron_directions(self._model, layer, directions)

    def values_through_heads(
        self, layer: int, values: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row head head_dim"]:
        """Return the `head_values` of block `layer` where its heads attend to this residual alone: W_V N(h)."""
        found: Tensor = values_through_heads(self._model, layer, values).unflatten(1, (self.heads, -1))
        return found

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

    def embed(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
        """Return the input embeddings of tokens, in float32: what layer 0 is where no positions are added."""
        return embed(self._model, ids)

    def nearest(
        self, vectors: Float[Tensor, "row d_embed"], among: Sequence[int] | None = None, without: Sequence[int] = ()
    ) -> Int[Tensor, " row"]:
        """Return for each vector the token whose input embedding has the largest cosine with it.

        Args:
            vectors: compared in float32.
            among: tokens to choose from; None takes all that have a text.
            without: tokens to leave out of them.

        Raises:
            UsageError: no token is left.
        """
        known = readable_ids(self._model)
        ids = known if among is None else known[torch.isin(known, torch.tensor(among))]
        ids = ids[~torch.isin(ids, torch.tensor(without, dtype=torch.long))]
        if not len(ids):
            raise UsageError(f"no token of {self.name} is left to choose from; give other ids, or leave out fewer")
        return nearest_tokens(self._model, vectors, ids)

    def first_tokens(self, answers: Sequence[str]) -> tuple[int, ...]:
        """Return the first token of each answer, as it follows a text."""
        return tuple(self._model.tokens.answer_token(answer) for answer in answers)

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without spaces at its ends."""
        return self._model.tokens.decode(ids).strip()
