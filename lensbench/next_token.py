"""Prose: what lenses say the next token is, beside what the model says.

There are no choices: the gold answer is the model's own most likely token, and the whole distribution is compared.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensbench.bench import Bench, Change, Lab, Labels, Method
from lensbench.errors import LensbenchError
from lensbench.evidence import NotApplicableError, Scores
from lensbench.inspectors.base import Inspector, Lens
from lensbench.measures import per_item
from lensbench.model.language_model import LanguageModel
from lensbench.tasks import Item, Relation

POSITIONS = 8
"""How many positions of a passage are asked."""
FIRST = 8
"""How many tokens of a passage come before the first of them."""


@dataclass(frozen=True)
class Following:
    """What follows a position in the passage: a token, and how many bytes of text it is."""

    token: int
    n_bytes: int


def positions_of(model: LanguageModel, passage: Item) -> Iterator[tuple[Item, Following]]:
    """Cut a passage after some of its tokens, evenly: one item each, and what follows it.

    A cut that the tokenizer would read as other tokens than the passage's own is left out.
    """
    encoding = model.tokens.encode(passage.source)
    shift = len(model.tokens.prefix)
    first = FIRST + sum(end <= shift for _, end in encoding.offsets)  # after BOS, and a chat template
    last = len(encoding.ids) - 2
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
            yield item, Following(encoding.ids[place + 1], n_bytes)


@dataclass(frozen=True)
class ProseScores:
    """A lens beside the model: all arrays [layer, item].

    Attributes:
        top: the lens's most likely token.
        gold_log_prob: what it gives the model's most likely token.
        gold_rank: where that stands in its vocabulary (0 = the top).
        measures: KL(model || lens), surprisal of the token that follows, and that in bits for each byte of text.
        marginal_bias: KL(mean of the model || mean of the lens), [layer].
    """

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

    @cached_property
    def final(self) -> Tensor:
        """The items' residuals at the last layer: [item, d_model]."""
        last = self.lab.model.n_layers
        readings = self._readings(self.items)
        return self.lab.residuals.read(self.lab.model, readings, (last,)).values[0]

    @cached_property
    def gold(self) -> tuple[int, ...]:
        """The model's own most likely next token of each item."""
        chunks = self.final.split(self.lab.model.head_rows)
        return tuple(int(i) for chunk in chunks for i in self.lab.target.unembed(chunk).argmax(1))

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
            f"{relation.name}: no passage has {FIRST + 2} tokens or more under {lab.model.name}; give longer ones"
        )
    return ProseBench(lab, relation, tuple(item for item, _ in found), (), {i.id: after for i, after in found})


class ProseMethod(Method):
    """A lens at work on prose; any other method is refused."""

    bench: ProseBench

    def scores(self, layers: tuple[int, ...] | None = None, change: Change | None = None) -> Scores:
        """Compare the lens with the model at every position.

        Raises:
            NotApplicableError: the method gives no distribution over the vocabulary.
        """
        lens = self._lens()
        bench = self.bench
        asked = bench.lab.layers if layers is None else layers
        residuals = (change(bench.residuals) if change else bench.residuals).at(asked)
        translated = lens.translate(residuals.layers, residuals.values)
        return _InProse(("default",), torch.zeros(len(asked), 1, 0, 0), prose=_compare(bench, translated))

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
def _compare(bench: ProseBench, translated: Tensor) -> ProseScores:
    """Run model and lens through the head, some items at a time."""
    target = bench.lab.target
    layers, items, _ = translated.shape
    found: dict[str, list[Tensor]] = {}
    sums: Tensor | None = None
    after = [bench.following[item.id] for item in bench.items]
    for rows in torch.arange(items).split(max(1, target.head_rows // 2)):
        model = target.unembed(bench.final[rows]).float().log_softmax(1)
        gold = model.argmax(1, keepdim=True)
        actual = torch.tensor([[after[i].token] for i in rows.tolist()], device=model.device)
        chunk: dict[str, list[Tensor]] = {}
        expected = _probabilities(model)
        means = [expected.sum(0)]
        for layer in range(layers):
            lens = target.unembed(translated[layer, rows]).float().log_softmax(1)
            at_gold = lens.gather(1, gold)
            values = {
                "top": lens.argmax(1),
                "gold_log_prob": at_gold[:, 0],
                "gold_rank": (lens > at_gold).sum(1),
                "kl": (expected * (model - lens)).sum(1),
                "surprisal": -lens.gather(1, actual)[:, 0],
            }
            means.append(_probabilities(lens).sum(0))
            for name, value in values.items():
                chunk.setdefault(name, []).append(value)
        stacked = torch.stack(means)
        sums = stacked if sums is None else sums + stacked
        for name, parts in chunk.items():
            found.setdefault(name, []).append(torch.stack(parts))
    assert sums is not None
    arrays = {name: torch.cat(parts, dim=1).cpu().numpy() for name, parts in found.items()}
    log_means = (sums / items).log()
    bias = (log_means[0].exp() * (log_means[0] - log_means[1:])).sum(1)
    per_byte = math.log(2) * float(np.mean([one.n_bytes for one in after]))
    measures = {name: arrays[name] for name in ("kl", "surprisal")}
    # The mean of this is the bits of all tokens over the bytes of all tokens.
    measures["bits_per_byte"] = arrays["surprisal"] / per_byte
    return ProseScores(arrays["top"], arrays["gold_log_prob"], arrays["gold_rank"], measures, bias.cpu().numpy())


def prose_columns(bench: ProseBench, scores: Scores, layers: Sequence[int | None]) -> dict[str, Any]:
    """Return the columns of the records: is the lens's most likely token the model's? In (layer, item) order."""
    found = prose_of(scores)
    decode = bench.lab.model.tokens.decode
    words = {int(token): decode([int(token)]) or f"<{token}>" for token in {*found.top.ravel().tolist(), *bench.gold}}
    predicted = [words[int(token)] for token in found.top.ravel()]
    right = (found.gold_rank == 0).astype(float).ravel()
    repeat = len(layers)
    columns: dict[str, Any] = {
        "layer": [layer for layer in layers for _ in bench.items],
        "attempt": scores.attempts[0],
        "predicted": predicted,
        "predicted_corrected": predicted,
        "correct": right,
        "correct_corrected": right,
        "gold_log_prob": found.gold_log_prob.astype(float).ravel().tolist(),
        "gold_rank": found.gold_rank.ravel().tolist(),
        "gold": [words[token] for token in bench.gold] * repeat,
        "chance": 1 / int(bench.lab.model.vocabulary),
        "item": [item.id for item in bench.items] * repeat,
    }
    for name in ("relation", "subject", "site", "template", "fold"):
        columns[name] = [getattr(item, name) for item in bench.items] * repeat
    return columns


def prose_measures(bench: ProseBench, scores: Scores, layers: Sequence[int | None]) -> dict[str, list[Any]]:
    """Return the columns of the measures: one row an item and layer, and the marginal bias once a layer."""
    found = prose_of(scores)
    values = {name: array[:, None] for name, array in found.measures.items()}
    columns = per_item(values, layers, scores.attempts, bench.items)
    count = len(layers)
    bias = {"layer": list(layers), "metric": ["marginal_bias"] * count, "value": found.marginal_bias.tolist()}
    bias |= {"attempt": [scores.attempts[0]] * count, "item": [None] * count, "subject": [None] * count}
    return {name: column + bias[name] for name, column in columns.items()}
