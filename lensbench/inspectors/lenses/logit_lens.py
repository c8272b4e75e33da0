"""Logit lens."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Learns, Source


class LogitLens(Translator):
    """U(N(h_l)): what the model would say if layer l were its last (nostalgebraist 2020).

    Equation: p_l = softmax(U(N(h_l))), with the model's own final norm N and head U.
    """

    name: ClassVar[str] = "logit_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "nothing"
    cost: ClassVar[str] = "the head, once an item and layer"

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Leave each layer's residual as it is."""
        return values
