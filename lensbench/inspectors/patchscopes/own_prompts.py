"""Methods that patch an item's residual into its own prompt: back-patching and the chain-of-thought Patchscope."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from lensbench.errors import NotApplicableError
from lensbench.inspectors.access import BEFORE_HOP, HOP, SITE, SUBJECT, Runs
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.utils.layer_spec import parse_layers


@dataclass(frozen=True)
class Route:
    """Where a residual is read, and where it is written: places of one text, and the layer of the second."""

    read: str
    write: str
    target_layer: int

    @property
    def name(self) -> AttemptName:
        """The name of the attempt."""
        variant = f"{self.read}->{self.write}"
        return AttemptName(f"{variant}@{self.target_layer}", self.target_layer, variant)


def spread_layers(name: str, given: str, target: Target) -> tuple[int, ...]:
    """Return the target layers of `all`, `0,4,8` or `stride:4`, the one nearest to a quarter of the depth first.

    Raises:
        UsageError: another form, or a layer that the model does not have.
    """
    layers = parse_layers(given, target.n_layers, f"{name}: target_layers")
    default = min(layers, key=lambda layer: abs(layer - target.n_layers / 4))
    return (default, *(layer for layer in layers if layer != default))


def asking(evidence: Evidence) -> Runs:
    """Return the target on the items' own sources, which must go on after the subject to ask for something.

    Raises:
        NotApplicableError: the sources end at the subject.
    """
    runs = evidence.runs.own()
    if runs.ends_at(SUBJECT):
        raise NotApplicableError("the sources end at the subject and ask nothing; read at answer or t2")
    return runs


def repatched(evidence: Evidence, runs: Runs, routes: tuple[Route, ...], moves: Callable[[int, int], bool]) -> Scores:
    """Read each item at every layer, write that into its own prompt, and score the answers as its next word.

    Args:
        evidence: for layers and answers.
        runs: the target on the items' own sources.
        routes: one an attempt.
        moves: whether a source layer is written at a target layer; where not, nothing is patched.
    """
    clean = runs.predict(evidence.answers)
    found = {place: runs.read(place, evidence.layers).values for place in {route.read for route in routes}}
    shape = (len(evidence.layers), len(routes), len(runs), len(evidence.answers))
    scores = clean.log_probs.expand(shape).clone()
    ranks = clean.ranks.expand(shape).clone()
    pairs = [
        (i, a)
        for i, layer in enumerate(evidence.layers)
        for a, one in enumerate(routes)
        if moves(layer, one.target_layer)
    ]
    for write in sorted({route.write for route in routes}):
        chosen = [(i, a) for i, a in pairs if routes[a].write == write]
        if not chosen:
            continue
        layers, attempts = (torch.tensor(column) for column in zip(*chosen, strict=True))
        targets = torch.tensor([routes[a].target_layer for _, a in chosen])
        for item in range(len(runs)):
            vectors = torch.stack([found[routes[a].read][i, item] for i, a in chosen])
            one = runs.patched(item, write, vectors, targets, evidence.answers)
            scores[layers, attempts, item] = one.log_probs.to(scores)
            ranks[layers, attempts, item] = one.ranks.to(ranks)
    return Scores(tuple(route.name for route in routes), scores, ranks)


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
