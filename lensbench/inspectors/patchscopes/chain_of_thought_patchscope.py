"""Chain-of-thought Patchscope."""

from typing import ClassVar

from lensbench.errors import NotApplicableError
from lensbench.inspectors.access import BEFORE_HOP, HOP
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source
from lensbench.inspectors.patchscopes.own_prompts import Route, asking, repatched, spread_layers
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel


class ChainOfThoughtPatchscope(Inspector):
    """Patch what the first hop came to into the end of the second hop's words, in the same prompt.

    Ghandeharioun et al. 2024, arXiv 2401.06102, section 5.

    A two-hop query is [π2][π1], such as "The capital of" "the country that Ada came from". The residual of the last
    token of π1 at layer l is written over the last token of π2 at layer l*, as if the model had been asked
    step by step; it then goes on to the end of the query. The quintuplet with T = S, i = end of π1, i* = end of π2.

    One attempt a target layer, named `hop->before_hop@4`; the first is the default. The published figure is the best of
    1,600 pairs of layers, which is the rule `oracle` here, and earns no verdict.

    Args:
        target_layers: l*: `all`, numbers such as `0,4,8`, or `stride:4`.
    """

    name: ClassVar[str] = "chain_of_thought_patchscope"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "target"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a target layer"
    cost: ClassVar[str] = "a patched pass an item, layer and target layer"

    def __init__(self, target_layers: str = "stride:4") -> None:
        self.target_layers = target_layers

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the target layers.

        Raises:
            UsageError: one that the model lacks.
        """
        spread_layers(self.name, self.target_layers, target)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every layer of the first hop's end into the second hop's end at every target layer.

        Raises:
            NotApplicableError: the sources are no chains, or end with the first hop.
        """
        runs = asking(evidence)
        runs.require(HOP, BEFORE_HOP)
        if runs.ends_at(HOP):
            raise NotApplicableError("the sources end with the first hop; read at t2, where the query ends")
        layers = spread_layers(self.name, self.target_layers, self.target_)
        routes = tuple(Route(HOP, BEFORE_HOP, layer) for layer in layers)
        return repatched(evidence, runs, routes, lambda _source, _target: True)
