"""Lists of layers, as users write them."""

from lensbench.errors import UsageError


def parse_layers(given: str, deepest: int | None, option: str = "--layers") -> tuple[int, ...]:
    """Return the layers of `all`, `0,4,8` or `stride:2`; for a model that is not known yet, only check the form.

    Args:
        given: the layers.
        deepest: L; None where the model is not known yet.
        option: what they were given as, for the error.

    Raises:
        UsageError: another form, or a layer that the model does not have.
    """
    expected = "expected all, numbers such as 0,4,8, or stride:2"
    if given == "all" or given.startswith("stride:"):
        step = given.removeprefix("stride:") if given != "all" else "1"
        if not _is_number(step) or int(step) < 1:
            raise UsageError(f"{option} {given!r}: {expected}")
        return tuple(range(0, (deepest or 0) + 1, int(step)))
    parts = [part.strip() for part in given.split(",")]
    if not all(map(_is_number, parts)):
        raise UsageError(f"{option} {given!r}: {expected}")
    layers = tuple(sorted({int(part) for part in parts}))
    if deepest is not None and layers[-1] > deepest:
        raise UsageError(
            f"{option} {given!r}: the model has layers 0 (embeddings) to {deepest}; layer {layers[-1]} is not one"
        )
    return layers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
