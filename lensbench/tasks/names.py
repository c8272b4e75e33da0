"""Names: when two are the same name, and where a text says one.

Two names are the same if they differ in nothing but case, width (full or half), blanks and canonical form (NFC).
Everything else is part of a name: signs (`C++`, `-5`, `O-`), accents, and marks that are letters (`й`, `パ`, `ดี`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Scripts that are written without blanks between words: no blank is expected beside a name in them.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # fmt: skip # noqa: E501
# Korean words go on with particles, and begin after a blank.
_HANGUL = re.compile(r"[\uac00-\ud7af]")
# How typography writes signs that keyboards have once.
_TYPOGRAPHY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-"})
_MINUS = "-+\u2212"
# Symbols that say nothing of what a name before them is.
_MARKS_OF_TRADE = "\u00a9\u00ae\u2122\u00b0"


class Span(NamedTuple):
    """Where a name stands in a text."""

    start: int
    end: int


def name_key(name: str) -> str:
    """Return what makes a name the same name: its case, width, blanks and canonical form are folded, and no more."""
    return " ".join(_folded(name).split())


def plain_words(text: str) -> str:
    """Reduce a text to its words without case, punctuation and the accents of Latin letters.

    Names that are alike in this form may be different names: it serves folds (alike names share one), and the search
    for texts that are nearly the same. Marks of other scripts are letters, and stay.
    """
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept, base = [], ""
    for c in decomposed:
        if _combines(c):
            kept += [] if "a" <= base <= "z" else [c]
        else:
            base = c
            kept.append(c if c.isalnum() else " ")
    # A name of punctuation alone keeps it, or all such names would be one.
    bare = " ".join("".join(kept).split()) or " ".join(decomposed.split())
    return unicodedata.normalize("NFC", bare)


def find_name(text: str, name: str, *, whole: bool = True) -> Span | None:
    """Return the first place where a text has a name as words of its own, as `says` understands it.

    Args:
        text: searched.
        name: searched for.
        whole: whether the name's last word must end there; if not, "Pakistani" has "Pakistan".
    """
    return _find(*_folded_with_places(text.translate(_TYPOGRAPHY)), name, whole=whole)


def _find(folded: str, places: Sequence[Span], name: str, *, whole: bool) -> Span | None:
    """Find a name in a text that is folded already."""
    wanted = name_key(name.translate(_TYPOGRAPHY))
    begin = folded.find(wanted) if wanted else -1
    while begin >= 0:
        end = begin + len(wanted)
        if _begins(folded, begin) and (_ends(folded, begin, end) if whole else not _combines(folded[end : end + 1])):
            return Span(places[begin].start, places[end - 1].end)
        begin = folded.find(wanted, begin + 1)
    return None


def says(text: str, spellings: Iterable[str]) -> bool:
    """Return whether a text has one of the spellings as words of its own, whatever their case and blanks.

    A sign that belongs to a word is part of it: `-5` does not say `5`, nor `C#` `C`. In scripts that are written
    without blanks a name may stand beside any letter.
    """
    folded, places = _folded_with_places(text.translate(_TYPOGRAPHY))
    return any(_find(folded, places, spelling, whole=True) for spelling in spellings)


def _folded(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    narrow = "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(("<wide>", "<narrow>")) else c
        for c in composed
    )
    # Half-width kana bring their voicing marks as letters of their own: composed once more, they are one again.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", narrow).casefold())


def _folded_with_places(text: str) -> tuple[str, list[Span]]:
    """A text in the form of `name_key`, and for each of its characters where it stands in the text."""
    folded, places = [], []
    for found in re.finditer(r"\s+|\S", text) if text.isascii() else _clusters(text):
        form = " " if found[0].isspace() else _folded(found[0])
        folded.append(form)
        places += [Span(found.start(), found.end())] * len(form)
    return "".join(folded), places


def _clusters(text: str) -> Iterable[re.Match[str]]:
    """Runs of blanks, and characters with the marks (and the Hangul letters) that are written after them."""
    marks = "".join(dict.fromkeys(c for c in text if _combines(c) or "\u1160" <= c <= "\u11ff" or c in "\uff9e\uff9f"))
    return re.finditer(rf"\s+|\S[{re.escape(marks)}]*" if marks else r"\s+|\S", text)


def _combines(c: str) -> bool:
    return bool(c) and unicodedata.category(c)[0] == "M"


def _is_word(c: str) -> bool:
    return c.isalnum() or _combines(c) or c == "_"


def _begins(text: str, begin: int) -> bool:
    """Whether a word may begin here: nothing before it belongs to it."""
    first, before = text[begin], text[begin - 1 : begin]
    earlier = text[begin - 2 : begin - 1] if begin > 1 else ""
    if not before or _UNSPACED.match(first):
        return True
    if _is_word(before):
        return bool(_UNSPACED.match(before))
    if first.isdigit() and before in _MINUS:
        return _is_word(earlier)  # a range, 10-5, and no sign
    return not (first.isdigit() and before in ".," and earlier.isdigit()) and not (before == first and first in _MINUS)


def _ends(text: str, begin: int, end: int) -> bool:
    """Whether a word may end here: nothing after it belongs to it."""
    last, after, later = text[end - 1], text[end : end + 1], text[end + 1 : end + 2]
    if not after:
        return True
    if _combines(after) or (after == "\u30fc" and _UNSPACED.match(last)):
        return False
    if _UNSPACED.match(last) or _HANGUL.match(last):
        return True
    if _is_word(after):
        return bool(_UNSPACED.match(after))
    if not _is_word(last):
        return after != last or last not in f"{_MINUS}#"
    if last.isdigit():
        return not (after in ".," and later.isdigit()) and unicodedata.category(after) != "Sm"
    if after in "-\u2212" and end - begin <= 2:
        return _is_word(later)  # A-level, and not the blood group A-
    symbol = unicodedata.category(after) in ("Sm", "So") or after in "#*"
    return not symbol or after in _MARKS_OF_TRADE
