"""How right a generated text is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensbench.tasks.facts import facet_recall, rouge_l
from lensbench.tasks.names import says

WORDS = st.lists(st.sampled_from(["red", "green", "blue", "of", "the"]), max_size=8)


@pytest.mark.parametrize(
    ("text", "spellings", "found"),
    [
        ("He came from France in 1900.", ["France"], True),
        ("a Frenchman", ["French"], False),
        ("She is FRENCH, they say", ["France", "French"], True),
        ("born in sa\u0303o  Paulo", ["São Paulo"], True),
        ("born in Sao Paulo", ["São Paulo"], False),
        ("", ["x"], False),
    ],
)
def test_spellings_are_whole_words(text, spellings, found) -> None:
    assert says(text, spellings) is found


def test_facets_are_counted_once_each() -> None:
    facets = {"place": ["Poland", "Polish"], "era": ["1900s"], "claim": ["radium", "polonium"]}
    assert facet_recall("Polish chemist from Poland who found radium and polonium", facets) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one facet"):
        facet_recall("anything", {})


def longest(one: list[str], other: list[str]) -> int:
    """The longest common subsequence, by definition."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest(one[1:], other[1:])
    return max(longest(one[1:], other), longest(one, other[1:]))


@given(WORDS, WORDS)
def test_rouge_l_is_by_its_definition(one, other) -> None:
    common = longest(one, other)
    expected = 0.0
    if common:
        precision, recall = common / len(one), common / len(other)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(" ".join(one).upper(), ", ".join(other)) == pytest.approx(expected)


@given(st.text(max_size=30))
def test_a_text_is_all_of_itself(text) -> None:
    assert rouge_l(text, text) == (1.0 if re.search(r"\w", text) else 0.0)
