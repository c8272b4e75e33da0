"""The target model as far as an inspector may use it."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.models.component_capture import (
    Component,
    head_directions,
    heads_of,
    neuron_directions,
    require_component,
    values_through_heads,
)
from lensbench.models.components import ComponentError, final_norm
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import embed, nearest_tokens, readable_ids, token_directions
from lensbench.models.patching.patcher import RowMemory
from lensbench.models.relevance import require_relevance_rules
from lensbench.models.token_scores import TokenScores
from lensbench.models.tuned_lens_files import ModelIdentity, identify_model


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
    def identity(self) -> ModelIdentity:
        """What files of lenses call the model by, a fingerprint of its norm and head among it.

        Raises:
            LensbenchError: its head is not a module of its own.
        """
        return identify_model(self._model)

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

    def require_relevance_rules(self) -> None:
        """Refuse a model whose blocks the rules of relevance propagation are not known for.

        Raises:
            LensbenchError: which block, and what it lacks.
        """
        require_relevance_rules(self._model)

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
