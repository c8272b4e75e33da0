"""How all plots look: colours for colour-blind readers, fonts that stay text, names as they can be drawn."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib as mpl
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


STYLE_FILE = Path(__file__).with_name("lensbench.mplstyle")

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito 2008, ordered so that the first ones differ most; yellow, hard to see on white, comes last."""

METHOD_COLOURS = {"patchscope": "#D55E00", "probe": "#0072B2", "tuned_lens": "#009E73", "logit_lens": "#CC79A7"}
"""A method has the same colour in every plot, whichever others are in it."""

RIVAL_GREYS = ("#3b3b3b", "#5c5c5c", "#7a7a7a", "#969696", "#ababab")
RIVAL_DASHES = ((4.5, 1.6), (1.4, 1.4), (6.0, 1.5, 1.4, 1.5), (2.6, 1.4), (8.0, 2.0))
CHANCE_COLOUR = "#8a8a8a"
FAINT = "#e6e6e6"
MAP = "cividis"
"""The colour map of grids: even in lightness, and the same to colour-blind readers."""


@cache
def _settings() -> mpl.RcParams:
    return mpl.rc_params_from_file(STYLE_FILE, use_default_template=False)


@contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib's settings while a figure is drawn or saved: those of `lensbench.mplstyle`."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc would make other figures; this leaves the backend alone
        mpl.rcParams.update(_settings())
        mpl.rcParams["font.sans-serif"] = list(font_families())
        yield


def colours(methods: Iterable[str]) -> dict[str, str]:
    """One colour a method: its own where it has one, else the next that is free, in the order of the names."""
    names = sorted(set(methods))
    taken = {METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS}
    free = [colour for colour in OKABE_ITO if colour not in taken]
    others = [name for name in names if name not in METHOD_COLOURS]
    return {
        **{name: METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS},
        **{name: (free or list(OKABE_ITO))[index % len(free or OKABE_ITO)] for index, name in enumerate(others)},
    }


def readable(name: str) -> str:
    """A name of the data as a label."""
    return name.replace("_", " ")


def label(name: str) -> str:
    """A name of the data as a label in a figure."""
    return drawable(readable(name))
