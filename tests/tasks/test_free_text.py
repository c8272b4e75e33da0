"""Claims and their quotes, refusals, named answers, and confidence: each against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensbench.results.confidence import auroc, calibration_error
from lensbench.tasks.free_text import StatedFacet, find_claims, first_answer, is_refusal

KNOWN = {"country": ["Poland", "Polish", "France", "French"], "field": ["chemist", "painter"]}
OWN = {"country": ["Poland", "Polish"], "field": ["chemist"]}


def test_a_claim_is_right_only_with_its_quote() -> None:
    claims = find_claims("A POLISH painter who lived in France.", OWN, KNOWN)
    assert set(claims) == {
        StatedFacet("country", "POLISH", supported=True),
        StatedFacet("country", "France", supported=False),
        StatedFacet("field", "painter", supported=False),
    }
    assert find_claims("A person of note, from Polandia.", OWN, KNOWN) == []


@pytest.mark.parametrize(
    ("text", "refuses"),
    [("", True), (" ...", True), ("I don't know who this is", True), ("The unknown soldier", False), ("a city", False)],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(text) is refuses


@pytest.mark.parametrize(
    ("text", "named"),
    [("I think New York, not York", 1), ("york then New York", 0), ("Yorkshire", None), ("in newyork", None)],
)
def test_the_first_answer_that_is_named(text: str, named: int | None) -> None:
    assert first_answer(text, ["York", "New York"]) == named


PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30)


@given(PAIRS)
def test_confidence_by_its_definitions(pairs: list[tuple[float, bool]]) -> None:
    sure, right = (np.array(column) for column in zip(*pairs, strict=True))
    expected = 0.0
    for b in range(10):
        inside = [i for i, c in enumerate(sure) if b / 10 <= c < (b + 1) / 10 or (b == 9 and c == 1)]
        inside = [i for i in inside if min(int(sure[i] * 10), 9) == b]
        if inside:
            expected += abs(sum(right[inside]) - sum(sure[inside])) / len(sure)
    assert calibration_error(sure, right) == pytest.approx(expected, abs=1e-9)
    wins = [1.0 if a > c else 0.5 if a == c else 0.0 for a in sure[right] for c in sure[~right]]
    assert auroc(sure, right) == (pytest.approx(np.mean(wins)) if wins else None)
