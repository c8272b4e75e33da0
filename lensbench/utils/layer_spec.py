"""Lists of layers, as users write them."""

import re

from lensbench.errors import UsageError

_EXPECTED = "expected all, stride:2, or layers and ranges such as 0,4,8-12,last (-1 is the last, too)"
_LAYER = r"(-?\d+|last)"


def parse_layers(given: str, deepest: int | None, option: str = "--layers") -> tuple[int, ...]:
    """Return the layers of `all`, `stride:2`, or a list with commas of layers and ranges, such as `0,4-8,last`.

    `last` and negative numbers count from the end: -1 is the last layer.

    Args:
        given: the layers.
        deepest: L; None where the model is not known yet: then only the form is checked.
        option: what they were given as, for the error.

    Raises:
        UsageError: another form, or a layer that the model does not have.
    """
    known = 0 if deepest is None else deepest
    layers: set[int] = set()
    for part in (part.strip() for part in given.split(",")):
        if part == "all" or re.fullmatch(r"stride:0*[1-9]\d*", part, re.ASCII):
            layers |= set(range(0, known + 1, int(part.partition(":")[2] or 1)))
            continue
        ends = re.fullmatch(f"{_LAYER}(?:-{_LAYER})?", part, re.ASCII)
        if ends is None:
            raise UsageError(f"{option} {given!r}: {_EXPECTED}")
        first, last = (_number(end or ends[1], known) for end in ends.groups())
        if deepest is None:
            continue
        outside = next((layer for layer in (first, last) if not 0 <= layer <= deepest), None)
        if outside is not None:
            raise UsageError(
                f"{option} {given!r}: the model has layers 0 (embeddings) to {deepest}; layer {outside} is not one"
            )
        if first > last:
            raise UsageError(f"{option} {given!r}: the range {part} ends before it begins; {_EXPECTED}")
        layers |= set(range(first, last + 1))
    return tuple(sorted(layers))


def layer_numbers(given: object) -> tuple[int, ...]:
    """Return the layers of a number, of numbers with commas between, or of a list of them.

    Raises:
        ValueError: it is something else.
    """
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    texts = [str(part).strip() for part in parts]
    if not texts or not all(re.fullmatch(r"\d+", text, re.ASCII) for text in texts):
        raise ValueError("expected numbers of layers, such as 8,16,23")
    return tuple(map(int, texts))


def _number(text: str, deepest: int) -> int:
    number = -1 if text == "last" else int(text)
    return number if number >= 0 else deepest + 1 + number
