"""Names as they can be drawn: what no font has, and what matplotlib would read as mathematics."""

import re
import unicodedata
from functools import cache

from matplotlib.font_manager import fontManager, get_font

BASE_FONT = "DejaVu Sans"
"""Ships with matplotlib: figures are the same on every machine. It has Latin, Greek, Cyrillic, Hebrew and Arabic."""

OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "Segoe UI Symbol", "Arial Unicode MS",
)  # fmt: skip
"""Asked, where they are installed, for what the base font lacks."""

MISSING = "\N{WHITE SQUARE}"


@cache
def font_families() -> tuple[str, ...]:
    """Return the families that figures are drawn in, the base font first."""
    installed = {font.name for font in fontManager.ttflist}
    return (BASE_FONT, *(name for name in OTHER_FONTS if name in installed))


@cache
def _characters() -> frozenset[int]:
    """Every character that one of our fonts has."""
    return frozenset().union(*(get_font(fontManager.findfont(name)).get_charmap() for name in font_families()))


def drawable(text: str) -> str:
    """Return a text of the data as matplotlib can draw it.

    A run of characters that no font has becomes one square; a line break becomes a blank, and a dollar sign does not
    begin a formula.
    """
    kept = []
    for character in " ".join(text.split("\n")):
        category = unicodedata.category(character)
        # Joiners and variation selectors show nothing by themselves.
        if category in ("Cf", "Cc") or "\N{VARIATION SELECTOR-1}" <= character <= "\N{VARIATION SELECTOR-16}":
            continue
        kept.append(character if ord(character) in _characters() else MISSING)
    return re.sub(f"{MISSING}+", MISSING, "".join(kept)).replace("$", r"\$")
