"""Inspector: the interface of every method."""

import inspect as introspection
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.token_scores import TokenScores

Part = Literal["activation", "training"]
"""What a trained verbalizer's rivals lack."""


@dataclass(frozen=True)
class OwnPrompt:
    """The text that a method has its verbalizer read.

    Attributes:
        text: a plain text or a conversation, with the slot `{subject}` where the activation goes.
        placeholder: what stands in the slot.
    """

    text: Text
    placeholder: str


class Inspector(ABC):
    """A method that reads an answer out of evidence.

    Constructors only store their arguments, under the same names; what `fit` learns is stored in attributes that end
    in `_`.

    Attributes:
        name: how command line and records call it.
        reads: which sources it uses. The harness withholds the others.
        learns_from: the supervision it needs. Rivals get the same.
        tries: how many attempts it makes at an item and layer, in words, for `lensbench list`.
        cost: what it takes, in words, for `lensbench list`.
        class_subjects: how many training subjects each answer needs; answers with fewer are left out, with the items
            about them, for the method and its baselines.
        rule: which of its attempts stands for it: `fixed`, the first; or, for a search, `selected`: at each layer the
            one that is best on the other folds.
        generates: whether it says something in words where the evidence asks for a description. Rivals then do too.
        trained: whether its verbalizer was trained beforehand, on whatever its files say. Rivals then are what that
            training has taught it apart from reading.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = ""
    class_subjects: ClassVar[int] = 0
    rule: ClassVar[Literal["fixed", "selected"]] = "fixed"
    generates: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    def check(self, target: Target, verbalizer: LanguageModel) -> None:  # noqa: B027 - most methods read any model
        """Refuse models that the method cannot read, before anything is run.

        Raises:
            UsageError: what does not fit, and what to choose instead.
        """

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Inspector":
        """Learn what there is to learn. Called once a run, or once a relation and fold for what learns labels.

        Args:
            target: norm, head and sizes of the model whose activations will be read.
            verbalizer: the model that may turn an activation into words; by default the target itself.
            training: only what `learns_from` and `reads` declare is in it.

        Returns:
            The inspector itself.

        Raises:
            NotApplicableError: the method cannot answer these questions.
        """
        self.target_ = target
        self.verbalizer_ = verbalizer
        return self

    @abstractmethod
    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer of the relation at every layer of the evidence, each from `layers_read` alone."""

    def layers_read(self, layer: int) -> tuple[int, ...]:
        """Return the layers whose activations it is shown when it answers at a layer: that one.

        A method that reads several at once names layers below, too. What it answers at a layer is then what can be read
        up to there. Deeper layers are refused. Training activations are given only for the layers it is asked about.
        """
        return (layer,)

    def directions(self, layer: int, answers: Sequence[str]) -> Float[Tensor, "answer d_model"] | None:
        """Return the vector of the residual stream along which the fitted method reads each answer; None for none.

        What it reads of one answer against another at this layer is to grow with the product of the residual and the
        difference of their vectors, up to a factor and a constant. Whether the model uses what is read is tried by an
        interchange along that difference (docs/statistics.md).
        """
        return None

    def own_prompt(self, question: str) -> OwnPrompt | None:
        """Return the text that the method has its verbalizer read for a question; None for a method that has none.

        The input-only rival gets the same text with the subject's name in the slot, the question-only rival with the
        placeholder.
        """
        return None

    def own_prompts(self, forms: tuple[str, ...]) -> tuple[OwnPrompt, ...]:
        """Return every text that the method has its verbalizer read, where it may be more than one.

        Args:
            forms: the texts that ask the relation's question, the inspection prompt first.
        """
        own = self.own_prompt(forms[0])
        return () if own is None else (own,)

    def reader(self, verbalizer: LanguageModel) -> LanguageModel:
        """Return the model that reads the method's prompts: the verbalizer, or what the method makes of it.

        Called before `fit`, too. The question-only rival asks this model, and the input-only rival this one as well.
        """
        return verbalizer

    def without(self, part: Part) -> "Inspector | None":
        """Return the method as it would be without a part, for rivals; None for a method that is nothing without it.

        Args:
            part: `activation`: what it says whatever is read, by what it has learned beforehand; `training`: as it was
                before that.
        """
        return None

    def files(self) -> tuple[Path, ...]:
        """Return the files that it has learned from elsewhere, such as a checkpoint: with other content, redo cells."""
        return ()

    def parameters(self) -> dict[str, Any]:
        """Return the constructor's arguments, by name."""
        names = introspection.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}


def by_layer(scores: TokenScores, layers: int, attempts: tuple[str, ...]) -> Scores:
    """Shape token scores of rows in (layer, attempt, item) order as Scores."""
    shape = (layers, len(attempts), -1, scores.log_probs.shape[1])
    return Scores(attempts, scores.log_probs.reshape(shape), scores.ranks.reshape(shape))


class Lens(Inspector):
    """A method that gives, at each layer, a distribution over the whole vocabulary.

    It can also be asked for the next token of prose.
    """

    @property
    def ahead(self) -> tuple[int, ...]:
        """Which token each attempt predicts: 0 for the next one, 1 for the one after that..."""
        return (0,)

    @abstractmethod
    def logits(self, layer: int, values: Float[Tensor, "item d_model"], attempt: int) -> Float[Tensor, "item vocab"]:
        """Return the logits of one layer's residuals, at one attempt."""

    def attempts(self) -> tuple[str, ...]:
        """Return the attempts' names, in the order of `ahead`."""
        return tuple("default" if n == 0 else f"ahead={n}" for n in self.ahead)

    def inspect(self, evidence: Evidence) -> Scores:
        """Score the answers at each layer by the layer's own distribution."""
        parts = [
            self.target_.score_answers_of(self._head(layer, attempt), values, evidence.answers)
            for layer, values in zip(evidence.layers, evidence.residuals.values, strict=True)
            for attempt in range(len(self.ahead))
        ]
        shape = (len(evidence.layers), len(self.ahead), *parts[0].log_probs.shape)
        log_probs, ranks = (torch.stack([getattr(one, name) for one in parts]) for name in ("log_probs", "ranks"))
        return Scores(self.attempts(), log_probs.reshape(shape), ranks.reshape(shape))

    def _head(self, layer: int, attempt: int) -> Callable[[Tensor], Tensor]:
        return lambda values: self.logits(layer, values, attempt)


class Translator(Lens):
    """A lens that carries each layer's residual to the last layer's basis, where the model's own norm and head read."""

    @abstractmethod
    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return each layer's residuals in the basis of the last layer."""

    def logits(self, layer: int, values: Float[Tensor, "item d_model"], attempt: int) -> Float[Tensor, "item vocab"]:
        """Translate one layer's residuals and unembed them."""
        return self.target_.unembed(self.translate((layer,), values[None])[0])

    def directions(self, layer: int, answers: Sequence[str]) -> Float[Tensor, "answer d_model"]:
        """Return the rows of the model's head, through the norm's gain, carried back by the layer's own map.

        Raises:
            LensbenchError: the model's final norm is no RMSNorm or LayerNorm.
        """
        rows = self.target_.reading_directions(answers)
        # The map is affine: what it makes of the unit vectors, less what it makes of 0, is its matrix.
        units = torch.eye(self.target_.d_model, device=rows.device)
        moved = self.translate((layer,), torch.cat([units, torch.zeros_like(units[:1])])[None])[0].float()
        return rows @ (moved[:-1] - moved[-1]).T

    def inspect(self, evidence: Evidence) -> Scores:
        """Translate each layer's residuals and unembed all of them together: rows shared by baselines are read once."""
        translated = self.translate(evidence.residuals.layers, evidence.residuals.values)
        scores = self.target_.score_answers(translated.flatten(0, 1), evidence.answers)
        return by_layer(scores, len(evidence.layers), self.attempts())
