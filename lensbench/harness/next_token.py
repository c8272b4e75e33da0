"""Prose: the next token according to lenses, compared with the model's own prediction.

There are no choices: the gold answer is the model's own most likely token, and the whole distribution is compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.inspectors.base import Inspector, Lens
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Reading, Residuals
from lensbench.models.language_model import LanguageModel
from lensbench.results.records import Columns, add_totals, per_item
from lensbench.tasks.facts import Relation
from lensbench.tasks.items import Item

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


NO_LENS = "prose asks for the model's own next token, of lenses: methods that give a distribution over the vocabulary"


@dataclass(frozen=True)
class ProseBench(Bench):
    """Positions of prose. The gold answer is the model's own most likely token, which depends on how far ahead it is.

    A lens is scored by the log-probability and the rank that it gives this token. Its texts are its own most likely
    tokens; its measures are KL(model || lens), the surprisal of the token that follows and, for the next token, that in
    bits for each byte of text. Over all items it has the marginal bias KL(mean of the model || mean of the lens).

    Attributes:
        following: by item, how the passage continues.
    """

    following: Mapping[str, Following]

    @property
    def answers(self) -> tuple[str, ...]:
        """The one answer that is scored: the model's own most likely token."""
        return ("",)

    def final(self, ahead: int) -> Tensor:
        """Return the residuals at the last layer, so many tokens of the passage after each item: [item, d_model]."""
        last = self.context.model.n_layers
        pairs = zip(self.items, self.readings(self.items), strict=True)
        readings = [Reading(one.ids + self.following[item.id].tokens[:ahead]) for item, one in pairs]
        return self.context.residuals.read(self.context.model, readings, (last,)).values[0]

    def check(self, inspector: Inspector) -> None:
        """Refuse any method but a lens.

        Raises:
            NotApplicableError: it gives no distribution over the vocabulary, or one too far ahead.
        """
        if not isinstance(inspector, Lens):
            raise NotApplicableError(NO_LENS)
        if max(inspector.ahead) > AHEAD:
            raise NotApplicableError(f"on prose, a lens can predict at most {AHEAD} tokens beyond the next one")

    @torch.no_grad()
    def score(self, inspector: Inspector, items: Sequence[int], layers: Sequence[int]) -> Scores:
        """Compare a fitted lens with the model at some positions, some rows at a time through both heads."""
        if not isinstance(inspector, Lens):
            raise NotApplicableError(NO_LENS)
        residuals = self.shown(self.residuals).at_layers(layers)
        chunks = torch.tensor(items).split(max(1, self.context.target.head_rows // 2))
        attempts = []
        for attempt, ahead in enumerate(inspector.ahead):
            actual = torch.tensor([self.following[item.id].tokens[ahead] for item in self.items])
            passes = _Passes(self.context.target, inspector, attempt, self.final(ahead), actual)
            attempts.append(passes.compare(residuals, chunks))
        found = {name: np.stack([one[name] for one in attempts], axis=1) for name in attempts[0]}
        measures = {name: found[name] for name in ("kl", "surprisal")}
        if inspector.ahead == (0,):
            # The mean of this is the bits of all tokens over the bytes of all tokens.
            per_byte = math.log(2) * float(np.mean([one.n_bytes for one in self.following.values()]))
            measures["bits_per_byte"] = found["surprisal"] / per_byte
        return Scores(
            inspector.attempts(),
            torch.from_numpy(found["gold_log_prob"])[..., None],
            torch.from_numpy(found["gold_rank"])[..., None],
            self._words(found["top"]),
            measures,
            {"marginal_bias": found["marginal_bias"]},
            self._words(found["gold"][0]),
        )

    def _words(self, tokens: np.ndarray) -> np.ndarray:
        """Return the texts of tokens."""
        decode = self.context.model.tokens.decode
        words = {int(token): decode([int(token)]) or f"<{token}>" for token in np.unique(tokens)}
        texts: np.ndarray = np.vectorize(lambda token: words[int(token)], otypes=[object])(tokens)
        return texts

    def columns(
        self, items: Sequence[Item], scores: Scores, layers: Sequence[int | None], *, correct_prior: bool
    ) -> Columns:
        """Return the columns of the records: is the lens's most likely token the model's?"""
        shape = scores.log_scores.shape[:3]
        layer, attempt, item = (axis.ravel().tolist() for axis in np.indices(shape))
        ranks = scores.gold_ranks()
        columns: Columns = {
            "layer": [layers[i] for i in layer],
            "attempt": [scores.attempts[i] for i in attempt],
            "gold_log_prob": scores.log_scores[..., 0].double().ravel().tolist(),
            "gold_rank": ranks.ravel().tolist(),
            "gold": np.broadcast_to(np.asarray(scores.golds), shape).ravel().tolist(),
            "chance": 1 / int(self.context.model.vocabulary),
            "item": [items[i].id for i in item],
        }
        for kind in ("", "_corrected"):
            columns[f"predicted{kind}"] = np.asarray(scores.texts).ravel().tolist()
            columns[f"correct{kind}"] = (ranks == 0).astype(float).ravel()
        for name in ("relation", "subject", "site", "template", "fold"):
            columns[name] = [getattr(items[i], name) for i in item]
        return columns

    def measures(self, items: Sequence[Item], scores: Scores, layers: Sequence[int | None]) -> Columns:
        """Return the columns of the measures: a row an item, attempt and layer, and the bias once a layer."""
        columns = per_item(scores.measures, layers, scores.attempts, items)
        return add_totals(columns, scores.totals, layers, scores.attempts)


def make_prose_bench(context: RunContext, relation: Relation, passages: Sequence[Item]) -> ProseBench:
    """Return the bench of some passages.

    Raises:
        LensbenchError: they are all too short.
    """
    found = [pair for passage in passages for pair in positions_of(context.model, passage)]
    if not found:
        raise LensbenchError(
            f"{relation.name}: no passage has {FIRST + 2 + AHEAD} tokens or more under {context.model.name}; give "
            "longer ones"
        )
    return ProseBench(context, relation, tuple(item for item, _ in found), (), {i.id: after for i, after in found})


def _probabilities(log_probs: Tensor) -> Tensor:
    """exp, at least e^-80: what is smaller is a denormal number, of which a CPU makes a hundred times the work."""
    return log_probs.clamp(min=-80.0).exp()


@dataclass(frozen=True)
class _Passes:
    """One attempt of a lens: the model's last residuals [item, d_model], and the tokens that do follow [item]."""

    target: Target
    lens: Lens
    attempt: int
    final: Tensor
    actual: Tensor

    def compare(self, residuals: Residuals, chunks: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Return everything as [layer, item] arrays, and the marginal bias as [layer]."""
        parts = [self._chunk(residuals, rows) for rows in chunks]
        found = {name: torch.cat([one[name] for one, _ in parts], dim=1).cpu().numpy() for name in parts[0][0]}
        sums = parts[0][1]
        for _, more in parts[1:]:
            sums = sums + more
        log_means = (sums / len(self.final)).log()
        bias = (log_means[0].exp() * (log_means[0] - log_means[1:])).sum(1)
        return {**found, "marginal_bias": bias.cpu().numpy()}

    def _chunk(self, residuals: Residuals, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return some items' comparisons, [layer, item], and the summed probabilities of the model and each layer."""
        model = self.target.unembed(self.final[rows]).float().log_softmax(1)
        per_layer, sums = [], [_probabilities(model).sum(0)]
        for layer, values in zip(residuals.layers, residuals.values, strict=True):
            own = self.lens.logits(layer, values[rows], self.attempt).float().log_softmax(1)
            sums.append(_probabilities(own).sum(0))
            per_layer.append(_beside(model, own, self.actual[rows].to(own.device)))
        return {name: torch.stack([one[name] for one in per_layer]) for name in per_layer[0]}, torch.stack(sums)


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
