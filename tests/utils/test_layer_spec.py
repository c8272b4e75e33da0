"""Lists of layers."""

import pytest

from lensbench.errors import UsageError
from lensbench.utils.layer_spec import parse_layers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", tuple(range(11))), ("stride:4", (0, 4, 8)), ("8, 0,4", (0, 4, 8)), ("last", (10,)), ("-1,0", (0, 10)),
        ("2-4", (2, 3, 4)), ("0,8-last", (0, 8, 9, 10)), ("-3--1", (8, 9, 10)), ("3-3", (3,)),
        ("stride:5,9", (0, 5, 9, 10)),
    ],
)  # fmt: skip
def test_lists_and_ranges(given: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(given, 10) == expected
    parse_layers(given, None)


@pytest.mark.parametrize("given", ["", "x", "3,x", "stride:0", "stride:-1", "²", "1.5", "0:4", "4..8", "--1", "last-"])
def test_other_forms_are_refused_before_the_model_is_known(given: str) -> None:
    with pytest.raises(UsageError, match="expected all, stride:2, or layers and ranges"):
        parse_layers(given, None)


@pytest.mark.parametrize(("given", "layer"), [("11", 11), ("4-11", 11), ("-12", -1)])
def test_layers_that_the_model_lacks_are_refused(given: str, layer: int) -> None:
    with pytest.raises(UsageError, match=f"layers 0 .embeddings. to 10; layer {layer} is not one"):
        parse_layers(given, 10)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UsageError, match="range 8-4 ends before it begins"):
        parse_layers("8-4", 10)
