"""What methods get that read more than residuals: the parts of blocks, and the target itself on texts not shown."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError, TokenError
from lensbench.models.activations import Reading, Residuals, capture, find_site
from lensbench.models.component_capture import Component
from lensbench.models.jacobians import Jacobian, jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Memo
from lensbench.models.patching.passes import Prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.token_scores import TokenScores
from lensbench.tasks.facts import SLOT
from lensbench.tasks.items import Item

SUBJECT, SITE, HOP, BEFORE_HOP = "subject", "site", "hop", "before_hop"
"""Places in a text: the last token of the subject's name; the read site; in a chain the last token of the first hop's
phrase, and the token before that phrase."""

Change = Callable[[Residuals], Residuals]


class Components:
    """Parts of blocks at the read sites of the evidence's items, captured when they are first asked for."""

    def __init__(self, read: Callable[[Component], Residuals]) -> None:
        self._read = read

    def read(self, name: Component) -> Residuals:
        """Return a component at the evidence's layers, as wide as it is: [layer, item, width].

        See `lensbench.models.component_capture.Component` for what there is.

        Raises:
            ComponentError: the model's blocks have no such part.
        """
        return self._read(name)


@dataclass(frozen=True)
class Located:
    """A text's tokens, and where its places are."""

    ids: tuple[int, ...]
    places: Mapping[str, int]


class Runs:
    """The target on one text for each item. It is read, patched and differentiated here; the texts are not shown.

    Args:
        model: the target.
        texts: of all items of the relation.
        chosen: which of them these runs are about.
        change: what a rival does to the residuals of all items.
    """

    def __init__(
        self, model: LanguageModel, texts: Sequence[Located], chosen: Sequence[int], change: Change | None = None
    ) -> None:
        self._model = model
        self._every = tuple(texts)
        self._chosen = tuple(chosen)
        self._texts = tuple(texts[i] for i in chosen)
        self._change = change

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def places(self) -> tuple[str, ...]:
        """The places that all texts have."""
        every = [set(text.places) for text in self._texts]
        return tuple(name for name in (SUBJECT, SITE, HOP, BEFORE_HOP) if all(name in places for places in every))

    def ends_at(self, place: str) -> bool:
        """Whether any text ends at this place."""
        return any(text.places.get(place) == len(text.ids) - 1 for text in self._texts)

    def require(self, *places: str) -> None:
        """Refuse texts without some places.

        Raises:
            NotApplicableError: a text has no such place.
        """
        for place in places:
            if place not in self.places:
                raise NotApplicableError(f"the sources have no place {place!r}; they have {', '.join(self.places)}")

    def read(self, place: str, layers: Sequence[int]) -> Residuals:
        """Read the residual stream at a place of each text: [layer, item, d_model]."""
        self.require(place)
        texts = self._texts if self._change is None else self._every
        found = capture(self._model, [Reading(text.ids[: text.places[place] + 1]) for text in texts], layers)
        # A rival such as another subject's activation needs all items to choose from.
        return found if self._change is None else self._change(found).at_items(self._chosen)

    def predict(self, answers: Sequence[str]) -> TokenScores:
        """Score the first token of each answer as the next one after each text: rows are items."""
        last = capture(self._model, [Reading(text.ids) for text in self._texts], (self._model.n_layers,))
        return self._model.score_tokens(last.values[0], self._tokens(answers))

    def next_tokens(self) -> Int[Tensor, " item"]:
        """Return the target's most likely next token after each text."""
        last = capture(self._model, [Reading(text.ids) for text in self._texts], (self._model.n_layers,)).values[0]
        chunks = last.split(self._model.head_rows)
        return torch.cat([self._model.unembed(chunk).argmax(1) for chunk in chunks])

    def patched(
        self,
        item: int,
        place: str,
        vectors: Float[Tensor, "row d_model"],
        target_layers: Int[Tensor, " row"],
        answers: Sequence[str],
    ) -> TokenScores:
        """Write vectors into one item's own text, one a row, and score the answers as the next word after it.

        Args:
            item: which text.
            place: where in it.
            vectors: what to write.
            target_layers: at which layer, one a row.
            answers: what to score.
        """
        text = self._texts[item]
        prompt = Prompt(text.ids, text.places[place])
        return patcher_of(self._model).score(prompt, vectors, target_layers, self._tokens(answers))

    def jacobian(self, item: int, place: str) -> Jacobian:
        """Return how the last token's final residual moves with the residual at a place of one text, at all layers."""
        self.require(place)
        text = self._texts[item]
        # Folds share examples, and rivals the method's own.
        memo = self._model.cache.get_or_compute("jacobians", Memo)
        key = (text.ids, text.places[place])
        found = memo.get_or_compute(key, lambda: jacobian(self._model, *key))
        while len(memo) > 1 and sum(one.weight.nbytes for one in memo.values()) > self._model.budget.bytes:
            memo.popitem(last=False)
        return found

    def digests(self) -> tuple[str, ...]:
        """Return a digest of each text, to bring items into an order that is the same for all selections of them."""
        return tuple(hashlib.sha256(repr(text.ids).encode()).hexdigest() for text in self._texts)

    def _tokens(self, answers: Sequence[str]) -> list[int]:
        return [self._model.tokens.answer_token(answer) for answer in answers]


class TargetRuns:
    """The target on texts about the items: their own sources, or a question that is filled with their names.

    Args:
        model: the target.
        items: whom it may be run on.
        chosen: which of the items the evidence is about.
        change: what a rival does to the residuals of all items.
    """

    def __init__(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        chosen: Sequence[int] | None = None,
        change: Change | None = None,
    ) -> None:
        self._model = model
        self._items = tuple(items)
        self._chosen = tuple(range(len(items))) if chosen is None else tuple(chosen)
        self._change = change

    def own(self) -> Runs:
        """Return the target on the items' own sources, up to their read site."""
        return self._runs(lambda item: own_text(self._model, item))

    def asked(self, form: str) -> Runs:
        """Return the target on a form whose slot is filled with each item's name.

        Raises:
            LensbenchError: a form without a single slot.
        """
        return self._runs(lambda item: asked_text(self._model, form, item))

    def asked_after(self, form: str) -> Runs:
        """Return the target on the items' own sources, up to their read site, with a question on the next line.

        Raises:
            LensbenchError: a form without a single slot.
        """
        return self._runs(lambda item: text_and_question(self._model, form, item))

    def _runs(self, locate: Callable[[Item], Located]) -> Runs:
        return Runs(self._model, [locate(item) for item in self._items], self._chosen, self._change)


def own_text(model: LanguageModel, item: Item) -> Located:
    """Locate the places of an item's source, which ends at the read site.

    Raises:
        TokenError: the site cannot be located.
    """
    ids = find_site(model, item).ids
    places = {SITE: len(ids) - 1}
    encoding = model.tokens.encode(item.source)
    spans = {}
    if item.subject_span[1] > item.subject_span[0]:
        spans[SUBJECT] = item.subject_span
    if item.hop_span is not None:
        begin = len(item.source[: item.hop_span[0]].rstrip())
        spans |= {HOP: item.hop_span, BEFORE_HOP: (0, begin)}
    for name, span in spans.items():
        try:
            position = model.tokens.locate(encoding, span)
        except TokenError:  # token 0, or no token of its own: nothing is read or written there
            continue
        if position < len(ids):
            places[name] = position
    return Located(ids, places)


def text_and_question(model: LanguageModel, form: str, item: Item) -> Located:
    """Put a form with an item's name under the item's source, and locate the source's read site.

    Raises:
        LensbenchError: a form without a single slot.
        NotApplicableError: the source has other tokens where a text follows it.
        TokenError: the site cannot be located.
    """
    before, after = _around_slot(form)
    own = find_site(model, item).ids
    ids = model.tokens.encode(f"{item.source}\n{before}{item.mention}{after}").ids
    if ids[: len(own)] != own:
        raise NotApplicableError(f"{item.source!r} ends in other tokens where a question follows it")
    return Located(ids, {SITE: len(own) - 1})


def asked_text(model: LanguageModel, form: str, item: Item) -> Located:
    """Fill a form with an item's name, and locate it.

    Raises:
        LensbenchError: a form without a single slot.
        TokenError: the name cannot be located.
    """
    before, after = _around_slot(form)
    encoding = model.tokens.encode(before + item.mention + after)
    span = (len(before), len(before) + len(item.mention))
    return Located(encoding.ids, {SUBJECT: model.tokens.locate(encoding, span), SITE: len(encoding.ids) - 1})


def _around_slot(form: str) -> tuple[str, str]:
    before, slot, after = form.partition(SLOT)
    if not slot or SLOT in after:
        raise LensbenchError(f"form {form!r} has no single {SLOT} slot; give one where the name goes")
    return before, after
