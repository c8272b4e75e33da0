"""Logit lens."""

from typing import ClassVar

from lensbench.evidence import Evidence, Learns, Scores, Source
from lensbench.inspectors.base import Inspector, read_lens


class LogitLens(Inspector):
    """U(N(h_l)): what the model would say if layer l were its last (nostalgebraist 2020).

    Equation: p_l = softmax(U(N(h_l))), with the model's own final norm N and head U.
    """

    name: ClassVar[str] = "logit_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "nothing"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed each layer's residual as it is."""
        assert evidence.residuals is not None
        return read_lens(self.target_, evidence, evidence.residuals.values)
