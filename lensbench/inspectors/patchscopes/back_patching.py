"""Back-patching."""

from typing import ClassVar

from lensbench.inspectors.access import HOP, SITE
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source
from lensbench.inspectors.patchscopes.own_prompts import Route, asking, repatched, spread_layers
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel


class BackPatching(Inspector):
    """Put a later layer's residual back at an earlier layer of the same token, and let the model go on.

    Biran et al. 2024, "Hopping too late", arXiv 2406.12775.

    The quintuplet of a Patchscope with T = S, i* = i, M* = M, f the identity and l* < l: h_{l*} ← h_l at the end of
    the first hop (t1, place `hop`) or at the last token (t2, place `site`). If the bridge was found too late for the
    blocks that know the second hop, they get it now.

    One attempt a place and target layer, named `hop->hop@4`; the first is the default. A source layer that is not above
    the target layer patches nothing: its score is the model's own, unpatched. What is read here is therefore what the
    model says with help, not a layer's content: the rival to watch is `asked_in_text`, the model without help.

    Args:
        target_layers: l*: `all`, numbers such as `0,4,8`, or `stride:4`.
    """

    name: ClassVar[str] = "back_patching"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "target"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a place and target layer"
    cost: ClassVar[str] = "a patched pass an item, layer, place and lower target layer"

    def __init__(self, target_layers: str = "stride:4") -> None:
        self.target_layers = target_layers

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the target layers.

        Raises:
            UsageError: one that the model lacks.
        """
        spread_layers(self.name, self.target_layers, target)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every layer back to every lower target layer.

        Raises:
            NotApplicableError: the sources ask for nothing.
        """
        runs = asking(evidence)
        places = [place for place in (HOP, SITE) if place in runs.places and not (place == HOP and runs.ends_at(HOP))]
        layers = spread_layers(self.name, self.target_layers, self.target_)
        routes = tuple(Route(place, place, layer) for place in places for layer in layers)
        return repatched(evidence, runs, routes, lambda source, target: source > target)
