"""Prose: what lenses say the next token is, beside what the model says.

There are no choices: the gold answer is the model's own most likely token, and the whole distribution is compared.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.harness.bench import Bench, CrossFit, Lab, Labels
from lensbench.inspectors.access import Change
from lensbench.inspectors.base import Inspector, Lens
from lensbench.inspectors.evidence import NotApplicableError, Scores, Target
from lensbench.models.activations import Reading, Residuals
from lensbench.models.language_model import LanguageModel
from lensbench.results.records import per_item
from lensbench.tasks import Item, Relation

POSITIONS = 8
"""How many positions of a passage are asked."""
FIRST = 8
"""How many tokens of a passage come before the first of them."""
AHEAD = 3
"""How many tokens beyond the next one a lens may be asked for."""


@dataclass(frozen=True)
class Following:
    """What follows a position in the passage: tokens, and how many bytes of text the first of them is."""

    tokens: tuple[int, ...]
    n_bytes: int


def positions_of(model: LanguageModel, passage: Item) -> Iterator[tuple[Item, Following]]:
    """Cut a passage after some of its tokens, evenly: one item each, and what follows it.

    A cut that the tokenizer would read as other tokens than the passage's own is left out.
    """
    encoding = model.tokens.encode(passage.source)
    shift = len(model.tokens.prefix)
    first = FIRST + sum(end <= shift for _, end in encoding.offsets)  # after BOS, and a chat template
    last = len(encoding.ids) - 2 - AHEAD
    if last < first:
        return
    for place in np.unique(np.linspace(first, last, POSITIONS).astype(int)):
        end = encoding.offsets[place][1] - shift
        if model.tokens.encode(passage.source[:end]).ids != encoding.ids[: place + 1]:
            continue
        # From the end of this token: some tokenizers leave the blank out of the next one's offsets.
        n_bytes = len(encoding.text[encoding.offsets[place][1] : encoding.offsets[place + 1][1]].encode())
        if n_bytes:
            item = replace(
                passage,
                id=f"{passage.id}@{place}",
                template=f"{passage.template}@{place}",
                source=passage.source[:end],
                subject_span=(0, 0),
            )
            yield item, Following(encoding.ids[place + 1 : place + 2 + AHEAD], n_bytes)


@dataclass(frozen=True)
class ProseScores:
    """A lens beside the model: all arrays [layer, attempt, item].

    Attributes:
        gold: the model's own most likely token, [attempt, item].
        top: the lens's most likely token.
        gold_log_prob: what it gives the model's most likely token.
        gold_rank: where that stands in its vocabulary (0 = the top).
        measures: KL(model || lens), surprisal of the token that follows, and, for the next token, that in bits for
            each byte of text.
        marginal_bias: KL(mean of the model || mean of the lens), [layer, attempt].
    """

    gold: np.ndarray
    top: np.ndarray
    gold_log_prob: np.ndarray
    gold_rank: np.ndarray
    measures: Mapping[str, np.ndarray]
    marginal_bias: np.ndarray


@dataclass(frozen=True)
class ProseBench(Bench):
    """Positions of prose.

    Attributes:
        following: by item, what the text goes on with.
    """

    following: Mapping[str, Following]

    def final(self, ahead: int) -> Tensor:
        """Return the residuals at the last layer, so many tokens of the passage after each item: [item, d_model]."""
        last = self.lab.model.n_layers
        pairs = zip(self.items, self.readings(self.items), strict=True)
        readings = [Reading(one.ids + self.following[item.id].tokens[:ahead]) for item, one in pairs]
        return self.lab.residuals.read(self.lab.model, readings, (last,)).values[0]

    def method(self, make: Callable[[], Inspector], fitted: dict[object, Inspector] | None = None) -> "ProseMethod":
        """Put an inspector to work on this bench."""
        return ProseMethod(make, self, {} if fitted is None else fitted)


def make_prose_bench(lab: Lab, relation: Relation, passages: Sequence[Item]) -> ProseBench:
    """Return the bench of some passages.

    Raises:
        LensbenchError: they are all too short.
    """
    found = [pair for passage in passages for pair in positions_of(lab.model, passage)]
    if not found:
        raise LensbenchError(
            f"{relation.name}: no passage has {FIRST + 2 + AHEAD} tokens or more under {lab.model.name}; give "
            "longer ones"
        )
    return ProseBench(lab, relation, tuple(item for item, _ in found), (), {i.id: after for i, after in found})


class ProseMethod(CrossFit):
    """A lens at work on prose; any other method is refused."""

    bench: ProseBench

    def scores(self, layers: tuple[int, ...] | None = None, change: Change | None = None) -> Scores:
        """Compare the lens with the model at every position.

        Raises:
            NotApplicableError: the method gives no distribution over the vocabulary, or one too far ahead.
        """
        lens = self._lens()
        if max(lens.ahead) > AHEAD:
            raise NotApplicableError(f"prose is asked for at most {AHEAD} tokens beyond the next one")
        bench = self.bench
        asked = bench.lab.layers if layers is None else layers
        residuals = (change(bench.residuals) if change else bench.residuals).at(asked)
        empty = torch.zeros(len(asked), len(lens.ahead), 0, 0)
        return _InProse(lens.attempts(), empty, prose=_compare(bench, lens, residuals))

    def scores_with(self, fold: int, labels: Labels | None, items: Sequence[int]) -> Scores:
        """Refuse: there are no labels in prose."""
        raise NotApplicableError(NO_LENS)

    def _lens(self) -> Lens:
        if not isinstance(self.inspector, Lens):
            raise NotApplicableError(NO_LENS)
        lens = self.fit(None, self.bench.lab.layers)
        assert isinstance(lens, Lens)
        return lens


NO_LENS = "prose asks for the model's own next token, of lenses: methods that give a distribution over the vocabulary"


@dataclass(frozen=True)
class _InProse(Scores):
    """Scores without choices: what was found in prose instead."""

    prose: ProseScores | None = None


def prose_of(scores: Scores) -> ProseScores:
    """Return what a method on a prose bench found."""
    assert isinstance(scores, _InProse)
    assert scores.prose is not None
    return scores.prose


def _probabilities(log_probs: Tensor) -> Tensor:
    """exp, at least e^-80: what is smaller is a denormal number, of which a CPU makes a hundred times the work."""
    return log_probs.clamp(min=-80.0).exp()


@torch.no_grad()
def _compare(bench: ProseBench, lens: Lens, residuals: Residuals) -> ProseScores:
    """Run model and lens through their heads, some items at a time."""
    rows = torch.arange(len(bench.items)).split(max(1, bench.lab.target.head_rows // 2))
    attempts = []
    for attempt, ahead in enumerate(lens.ahead):
        final = bench.final(ahead)
        actual = torch.tensor([bench.following[item.id].tokens[ahead] for item in bench.items])
        attempts.append(_Chunks(final, actual).joined(bench.lab.target, lens, residuals, attempt, rows))
    arrays = {name: np.stack([one[name] for one in attempts], axis=1) for name in attempts[0]}
    measures = {name: arrays[name] for name in ("kl", "surprisal")}
    if lens.ahead == (0,):
        # The mean of this is the bits of all tokens over the bytes of all tokens.
        per_byte = math.log(2) * float(np.mean([one.n_bytes for one in bench.following.values()]))
        measures["bits_per_byte"] = arrays["surprisal"] / per_byte
    gold, bias = arrays["gold"][0], arrays["marginal_bias"]
    return ProseScores(gold, arrays["top"], arrays["gold_log_prob"], arrays["gold_rank"], measures, bias)


@dataclass(frozen=True)
class _Chunks:
    """One attempt: the model's residuals at the last layer [item, d_model], and the tokens that do follow [item]."""

    final: Tensor
    actual: Tensor

    def joined(
        self, target: Target, lens: Lens, residuals: Residuals, attempt: int, chunks: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """Return everything as [layer, item] arrays, and the marginal bias as [layer]."""
        found: dict[str, list[Tensor]] = {}
        sums: Tensor | None = None
        for rows in chunks:
            model = target.unembed(self.final[rows]).float().log_softmax(1)
            per_layer: dict[str, list[Tensor]] = {}
            means = [_probabilities(model).sum(0)]
            for layer, values in zip(residuals.layers, residuals.values, strict=True):
                own = lens.logits(layer, values[rows], attempt).float().log_softmax(1)
                means.append(_probabilities(own).sum(0))
                for name, value in _beside(model, own, self.actual[rows].to(own.device)).items():
                    per_layer.setdefault(name, []).append(value)
            stacked = torch.stack(means)
            sums = stacked if sums is None else sums + stacked
            for name, parts in per_layer.items():
                found.setdefault(name, []).append(torch.stack(parts))
        assert sums is not None
        log_means = (sums / len(self.final)).log()
        bias = (log_means[0].exp() * (log_means[0] - log_means[1:])).sum(1)
        arrays = {name: torch.cat(parts, dim=1).cpu().numpy() for name, parts in found.items()}
        return {**arrays, "marginal_bias": bias.cpu().numpy()}


def _beside(model: Tensor, lens: Tensor, actual: Tensor) -> dict[str, Tensor]:
    """Compare log-probabilities [item, vocab] of the model and of a lens; all results are [item]."""
    gold = model.argmax(1, keepdim=True)
    at_gold = lens.gather(1, gold)
    return {
        "gold": gold[:, 0],
        "top": lens.argmax(1),
        "gold_log_prob": at_gold[:, 0],
        "gold_rank": (lens > at_gold).sum(1),
        "kl": (_probabilities(model) * (model - lens)).sum(1),
        "surprisal": -lens.gather(1, actual[:, None])[:, 0],
    }


def prose_columns(bench: ProseBench, scores: Scores, layers: Sequence[int | None]) -> dict[str, Any]:
    """Return the columns of the records: is the lens's most likely token the model's? In (layer, attempt, item) order.

    What the model says depends on how far ahead it is asked.
    """
    found = prose_of(scores)
    shape = found.top.shape
    decode = bench.lab.model.tokens.decode
    tokens = {int(token) for token in (*found.top.ravel(), *found.gold.ravel())}
    words = {token: decode([token]) or f"<{token}>" for token in tokens}
    layer, attempt, item = (axis.ravel().tolist() for axis in np.indices(shape))
    predicted = [words[int(token)] for token in found.top.ravel()]
    right = (found.gold_rank == 0).astype(float).ravel()
    columns: dict[str, Any] = {
        "layer": [layers[i] for i in layer],
        "attempt": [scores.attempts[i] for i in attempt],
        "predicted": predicted,
        "predicted_corrected": predicted,
        "correct": right,
        "correct_corrected": right,
        "gold_log_prob": found.gold_log_prob.astype(float).ravel().tolist(),
        "gold_rank": found.gold_rank.ravel().tolist(),
        "gold": [words[int(token)] for token in np.broadcast_to(found.gold, shape).ravel()],
        "chance": 1 / int(bench.lab.model.vocabulary),
        "item": [bench.items[i].id for i in item],
    }
    for name in ("relation", "subject", "site", "template", "fold"):
        columns[name] = [getattr(bench.items[i], name) for i in item]
    return columns


def prose_measures(bench: ProseBench, scores: Scores, layers: Sequence[int | None]) -> dict[str, list[Any]]:
    """Return the columns of the measures: one row an item, attempt and layer, and the marginal bias once a layer."""
    found = prose_of(scores)
    columns = per_item(found.measures, layers, scores.attempts, bench.items)
    layer, attempt = (axis.ravel().tolist() for axis in np.indices(found.marginal_bias.shape))
    count = len(layer)
    bias: dict[str, list[Any]] = {"layer": [layers[i] for i in layer], "attempt": [scores.attempts[i] for i in attempt]}
    bias |= {"metric": ["marginal_bias"] * count, "value": found.marginal_bias.ravel().tolist()}
    bias |= {"item": [None] * count, "subject": [None] * count}
    return {name: column + bias[name] for name, column in columns.items()}
