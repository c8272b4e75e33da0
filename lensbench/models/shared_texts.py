"""Texts that begin alike: which of them to run after a prefix that is run once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Ids = tuple[int, ...]
# What a group costs beside its tokens: a pass of the prefix alone, and a batch of its own. In tokens of a large batch:
# a short pass waits for the weights, on a GPU also for its own beginning.
CPU_GROUP_COST, GPU_GROUP_COST = 128, 4096


@dataclass(frozen=True)
class Group:
    """Texts that begin with the same tokens.

    Attributes:
        prefix: how many tokens are run once for all of them; 0 for texts that are run whole.
        texts: sorted by length, then by content.
    """

    prefix: int
    texts: tuple[Ids, ...]


def group_by_prefix(texts: Sequence[Ids], cost: int = CPU_GROUP_COST) -> list[Group]:
    """Split distinct texts into groups so that the fewest tokens are run; texts with nothing to share come first.

    At least the last token of each text stays out of its prefix: something has to be read.

    Args:
        texts: token ids.
        cost: what a group costs beside its tokens.
    """
    shared = sorted(_groups(sorted(texts), 0, cost), key=lambda group: group.texts)
    inside = {text for group in shared for text in group.texts}
    alone = tuple(sorted((text for text in texts if text not in inside), key=order))
    return [Group(0, alone)] * bool(alone) + shared


def order(text: Ids) -> tuple[int, Ids]:
    """Texts of like length stand together."""
    return len(text), text


def _groups(texts: list[Ids], begun: int, cost: int) -> list[Group]:
    """Return the groups that save most among sorted texts whose first `begun` tokens are the same."""
    texts = [text for text in texts if len(text) > begun]  # others have nothing to read after a longer prefix
    if len(texts) < 2:
        return []
    first, last = texts[0], texts[-1]  # of sorted texts these two differ soonest
    most = min(map(len, texts)) - 1
    prefix = begun
    while prefix < most and first[prefix] == last[prefix]:
        prefix += 1
    apart = [group for part in _parts(texts, prefix) for group in _groups(part, prefix + 1, cost)]
    together = (len(texts) - 1) * prefix - cost
    if together > 0 and together >= sum((len(group.texts) - 1) * group.prefix - cost for group in apart):
        return [Group(prefix, tuple(sorted(texts, key=order)))]
    return apart


def _parts(texts: list[Ids], place: int) -> Iterator[list[Ids]]:
    """Split sorted texts by the token at a place; a text that ends before it is a part of its own."""
    part: list[Ids] = []
    for text in texts:
        if part and text[place : place + 1] != part[-1][place : place + 1]:
            yield part
            part = []
        part.append(text)
    if part:
        yield part
