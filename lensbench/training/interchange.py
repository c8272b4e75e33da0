"""Where a fine-tuned model keeps what it was taught: found by interchange, with no method that reads activations.

The fine-tuned model is asked for its facts, in text, while the residual stream at the tokens of the name is replaced:

- *restored*: by that of the model before fine-tuning, on the same text. If answers stay right, nothing that fine-tuning
  put at the name is needed for them.
- *exchanged change*: what fine-tuning changed at another persona's name (tuned less untuned) stands on top of the own
  name's restored residuals. If answers follow the other persona's facts, the change carries facts.
- *exchanged last token*, *exchanged name*: the other persona's whole residual at the last token of the name, or at all
  its tokens. It carries who is meant as well as what was taught, so answers may follow it though no fact is there. All
  tokens at all layers are the text about the other: answers must follow, or nothing was exchanged.

Each at the layers up to a cut-off, and restoring also from a cut-off on. The first finds the layers by which a fact has
been put at the name, the second those at which it is taken from there. Whole names are exchanged from a cut-off on: up
to one, it would always be the other text.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Spots, interchanged, read_spots
from lensbench.tasks import Item

# A recall that falls by no more than this has stayed.
TOLERANCE = 0.05
# How many cut-offs the layers are divided by.
CUTS = 6


@dataclass(frozen=True)
class ItemPair:
    """An item, and the same text about another persona, who has another answer."""

    item: Item
    other: Item


@dataclass(frozen=True)
class Shares:
    """Of the items, how many answers are the own persona's fact, and how many the other's."""

    own: float
    other: float


@dataclass(frozen=True)
class Interchange:
    """What became of the answers, by cut-off l.

    Attributes:
        items: how many were asked.
        chance: one in so many choices.
        before: without any replacement.
        restored_to: at layers 0 to l.
        restored_from: at layers l to L.
        change_to: the other persona's change, at layers 0 to l.
        last_to: the other persona's last token, at layers 0 to l.
        name_from: the other persona's whole name, at layers l to L.
        same_length: in how many pairs both names have as many tokens; others are aligned at their last token, and
            tokens that the other name lacks get no change.
    """

    items: int
    chance: float
    before: Shares
    restored_to: dict[int, Shares]
    restored_from: dict[int, Shares]
    change_to: dict[int, Shares]
    last_to: dict[int, Shares]
    name_from: dict[int, Shares]
    same_length: int

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain values, with the verdict."""
        return {**asdict(self), "verdict": self.verdict()}

    def verdict(self) -> str:
        """Say whether the facts are held at the name."""
        costly = self.before.own - TOLERANCE
        into = [layer for layer, shares in self.restored_to.items() if shares.own < costly]
        out_of = [layer for layer, shares in self.restored_from.items() if shares.own < costly]
        carried = [layer for layer, s in self.change_to.items() if s.other > self.before.other + TOLERANCE]
        if not (into or out_of or carried):
            return "held at the name: no"
        whole = self.restored_to[max(self.restored_to)].own
        lost = self.before.own - whole > (self.before.own - self.chance) / 2
        # Put there by the first layer up to which replacing tells, and taken until the last from which it does.
        first, last = min([*into, *carried] or out_of), max(out_of or [*into, *carried])
        return f"held at the name: {'yes' if lost else 'partly'}, at layers {min(first, last)} to {last}"


def cut_offs(n_layers: int) -> tuple[int, ...]:
    """Return the layers up to which residuals are replaced; the last is L."""
    return tuple(sorted({round(n_layers * cut / CUTS) for cut in range(1, CUTS + 1)} - {0}))


def pair_items(model: LanguageModel, items: Sequence[Item]) -> tuple[ItemPair, ...]:
    """Give each item the next one of its text with another answer; one with a name of as many tokens, where there is.

    Items for which there is no other answer are left out.
    """
    length = {item.id: len(name_places(model, item)) for item in items}
    pairs = []
    for i, item in enumerate(items):
        alike = [*items[i + 1 :], *items[:i]]
        others = [
            other
            for other in alike
            if (other.relation, other.template) == (item.relation, item.template) and other.answer != item.answer
        ]
        others.sort(key=lambda other: length[other.id] != length[item.id])
        pairs += [ItemPair(item, other) for other in others[:1]]
    return tuple(pairs)


def name_places(model: LanguageModel, item: Item) -> tuple[int, ...]:
    """Return the positions of all tokens that hold a part of the item's name."""
    encoding = model.tokens.encode(item.source)
    last = model.tokens.locate(encoding, item.subject_span)
    begin = item.subject_span[0] + len(model.tokens.prefix)
    return tuple(i for i, (_, b) in enumerate(encoding.offsets) if i <= last and b > begin)


def interchange(tuned: LanguageModel, base: LanguageModel, items: Sequence[Item]) -> Interchange:
    """Ask a fine-tuned model its facts, with the residuals at names replaced.

    Args:
        tuned: the fine-tuned model.
        base: the same before fine-tuning.
        items: questions in text, of the `answer` site.
    """
    pairs = pair_items(tuned, items)
    asked = _PatchedQuestions(tuned, base, pairs)
    cuts = cut_offs(tuned.n_layers)
    layers = range(tuned.n_layers + 1)
    change, last, whole = asked.changes(), asked.lasts(), asked.names()
    return Interchange(
        items=len(pairs),
        chance=sum(1 / len(pair.item.choices) for pair in pairs) / len(pairs),
        before=asked.shares(asked.spots, asked.base, ()),
        restored_to={cut: asked.shares(asked.spots, asked.base, layers[: cut + 1]) for cut in cuts},
        restored_from={cut: asked.shares(asked.spots, asked.base, layers[cut:]) for cut in (1, *cuts[:-1])},
        change_to={cut: asked.shares(asked.spots, change, layers[: cut + 1]) for cut in cuts},
        last_to={cut: asked.shares(last[0], last[1], layers[: cut + 1]) for cut in cuts},
        name_from={cut: asked.shares(asked.spots, whole, layers[cut:]) for cut in (0, *cuts[:-1])},
        same_length=asked.same_length,
    )


class _PatchedQuestions:
    """Items for the fine-tuned model, and the residuals of both models at their names."""

    def __init__(self, tuned: LanguageModel, base: LanguageModel, pairs: Sequence[ItemPair]) -> None:
        self._model, self._pairs = tuned, pairs
        self.spots, others = _spots(tuned, [p.item for p in pairs]), _spots(tuned, [p.other for p in pairs])
        self.base, self._tuned_others = read_spots(base, self.spots), read_spots(tuned, others)
        self._change = self._tuned_others - read_spots(base, others)
        self._own_lengths = [len(places) for places in self.spots.places]
        self._other_lengths = [len(places) for places in others.places]

    @property
    def same_length(self) -> int:
        """In how many pairs both names have as many tokens."""
        return sum(a == b for a, b in zip(self._own_lengths, self._other_lengths, strict=True))

    def changes(self) -> Float[Tensor, "layer spot d_model"]:
        """Return restored residuals, with the change of the other's name upon them."""
        return self._aligned(self.base, self._change, lambda own, change: own + change)

    def names(self) -> Float[Tensor, "layer spot d_model"]:
        """Return the other's residuals; restored ones at tokens that the other name lacks."""
        return self._aligned(self.base, self._tuned_others, lambda _own, other: other)

    def _aligned(self, own: Tensor, others: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Join what is at own names with what is at the others', the last tokens aligned."""
        made = []
        pairs = zip(own.split(self._own_lengths, dim=1), others.split(self._other_lengths, dim=1), strict=True)
        for mine, theirs in pairs:
            shared = min(mine.shape[1], theirs.shape[1])
            kept = mine[:, : mine.shape[1] - shared]
            made.append(torch.cat([kept, join(mine[:, -shared:], theirs[:, -shared:])], dim=1))
        return torch.cat(made, dim=1)

    def lasts(self) -> tuple[Spots, Float[Tensor, "layer text d_model"]]:
        """Return the last token of each name, and what the other's has there."""
        spots = Spots(self.spots.texts, tuple(places[-1:] for places in self.spots.places))
        ends = torch.tensor(self._other_lengths).cumsum(0) - 1
        return spots, self._tuned_others[:, ends.to(self._tuned_others.device)]

    def shares(self, spots: Spots, values: Float[Tensor, "layer spot d_model"], layers: Sequence[int]) -> Shares:
        """Ask with residuals replaced, and count whose facts are answered."""
        final = interchanged(self._model, spots, values, layers)
        own = other = 0
        for choices in dict.fromkeys(pair.item.choices for pair in self._pairs):
            rows = [i for i, pair in enumerate(self._pairs) if pair.item.choices == choices]
            token_ids = [self._model.tokens.answer_token(choice) for choice in choices]
            best = self._model.token_logits(final[rows], token_ids).argmax(1).tolist()
            own += sum(choices[k] == self._pairs[i].item.answer for i, k in zip(rows, best, strict=True))
            other += sum(choices[k] == self._pairs[i].other.answer for i, k in zip(rows, best, strict=True))
        return Shares(round(own / len(final), 4), round(other / len(final), 4))


def _spots(model: LanguageModel, items: Sequence[Item]) -> Spots:
    texts = tuple(model.tokens.encode(item.source).ids for item in items)
    return Spots(texts, tuple(name_places(model, item) for item in items))
