"""How much of a source is read at its read site: the site's token, or several tokens that end there."""

from dataclasses import dataclass
from typing import Literal

from lensbench.errors import UsageError

Kind = Literal["token", "segment", "span", "text"]
_EXPECTED = "segment:N (the last N tokens), span (the subject's name) or text (all tokens)"


@dataclass(frozen=True)
class Extent:
    """The tokens that are read, which end at the read site; never token 0, an attention sink.

    Attributes:
        kind: `token`, the read site alone; `segment`, the last tokens up to it; `span`, those of the subject's name;
            `text`, all.
        length: of a segment, in tokens; shorter where the text is.
    """

    kind: Kind = "token"
    length: int = 1


def split_site(site: str) -> tuple[str, Extent]:
    """Return the place of a read site and its extent: `subject/segment:10` is `subject` and the last ten tokens.

    An extent alone has an empty place: it stands for every place that a task has.

    Raises:
        UsageError: an unknown extent, or a segment of no tokens.
    """
    place, slash, given = site.partition("/")
    if not slash:
        kind = site.partition(":")[0]
        if kind not in ("segment", "span", "text"):
            return site, Extent()
        place, given = "", site
    kind, colon, length = given.partition(":")
    if kind in ("span", "text") and not colon:
        return place, Extent("span" if kind == "span" else "text")
    if kind == "segment" and length.isascii() and length.isdigit() and int(length) > 0:
        return place, Extent("segment", int(length))
    raise UsageError(f"site {site!r}: after the place, expected {_EXPECTED}, such as subject/segment:10")
