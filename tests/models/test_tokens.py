"""Read sites by character offset: found, or refused with what to do."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from lensbench.errors import LensbenchError
from lensbench.models.tokens import CARRIER, Tokens

PIECES = ["<bos>", "<end>", "(", ")", "a", "b", "c", " ", "(a", "ab", " a", " ab"]
MERGES = [("(", "a"), ("a", "b"), (" ", "a"), (" ", "ab")]


def tokens(*, bos: bool = False) -> Tokens:
    """A tokenizer of four merges, and no token for any character but ()abc and the blank."""
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, MERGES))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<end>"}
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def place(text: str, part: str, *, bos: bool = False) -> int:
    known = tokens(bos=bos)
    start = text.index(part)
    return known.locate(known.encode(text), (start, start + len(part)))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("text", "part", "position"), [("c ab", "ab", 1), ("c ab c", "ab", 1), ("c cab", "cab", 3)])
def test_a_site_is_the_token_that_holds_the_last_character(text: str, part: str, position: int, bos: bool) -> None:
    assert place(text, part, bos=bos) == position + bos


WRONG = {
    ("ab c", "ab"): "read at token 0, an attention sink; begin the text with other words",
    ("(a c", "a"): "read at token 0",
    ("c ab", "a"): "merges the end of 'a' in 'c ab' with what follows",
    ("c xyz", "xyz"): "finds no token for the end of 'xyz'",
}


@pytest.mark.parametrize("case", WRONG, ids="".join)
def test_a_site_that_cannot_be_read_is_refused(case: tuple[str, str]) -> None:
    with pytest.raises(LensbenchError) as refused:
        place(*case)
    assert WRONG[case] in str(refused.value)


def test_with_bos_the_first_word_is_not_token_0() -> None:
    assert place("ab c", "ab", bos=True) == 1


def test_an_answer_needs_a_token_of_its_own() -> None:
    """Here the carrier's last letter and the blank are one token, so that an answer changes the text before it."""
    last = CARRIER[-1]
    backend = Tokenizer(models.BPE({last: 0, " ": 1, f"{last} ": 2, "a": 3}, [(last, " ")]))
    merging = Tokens(PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(LensbenchError, match="no token of its own"):
        merging.answer_token("a")


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(LensbenchError, match="gives no character offsets"):
        Tokens(Slow())
