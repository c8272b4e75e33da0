"""How names and figures of the data are written, in tables, sentences and pictures alike."""

import math


def readable(name: str) -> str:
    """A name of the data as a label."""
    return name.replace("_", " ")


def number(value: float, *, signed: bool = False) -> str:
    """A proportion with two decimals and no leading zero, as in papers: .75, -.03, +.10."""
    if math.isnan(value):
        return "-"
    value = round(value, 9)  # means of the same numbers in another order are to look the same
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    text = text.replace("-0.00", "0.00").replace("+0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text
