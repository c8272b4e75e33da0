"""What methods share that patch an item's residual into the item's own prompt."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lensbench.errors import NotApplicableError
from lensbench.inspectors.access import SUBJECT, Runs
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.inspectors.target import Target
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
        raise NotApplicableError("the sources end at the subject and ask for nothing; read at answer or t2")
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
