"""Read sites by character offset: found, or refused with what to do."""

import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
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


# --- chat templates, and answers -------------------------------------------------------------------------------------

TURN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
)
TYPED = TURN.replace("{{ m.content }}", "{{ m.content[0].text }}")
DATED = "{{ strftime_now('%d %b %Y') }}" + TURN


def chat(template: str) -> PreTrainedTokenizerFast:
    made = tokens().tokenizer
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "prefix"), [(TURN, "<user>Continue.</s><me>"), (TYPED, "<user>Continue.</s><me>")]
)
def test_a_prompt_begins_in_the_assistants_turn(template: str, prefix: str) -> None:
    assert Tokens(chat(template), chat_template=True).prefix == prefix


def test_a_template_is_told_the_same_day_always(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lensbench"):
        assert Tokens(chat(DATED), chat_template=True).prefix == "26 Jul 2024<user>Continue.</s><me>"
    assert "asks for the date; it is told 2024-07-26, always" in caplog.text


TEMPLATES = {
    "{{ raise_exception('roles must alternate') }}": "fails: roles must alternate",
    "{% for": "fails: ",
    "{{ messages.nothing.at_all }}": "fails: ",
    "<user>hello<me>": "leaves a turn's text out",
    TURN.partition("{% if")[0]: "begins no turn of the assistant",
}


@pytest.mark.parametrize(("template", "why"), TEMPLATES.items(), ids=TEMPLATES.values())
def test_a_template_that_is_of_no_use_is_one_line(template: str, why: str) -> None:
    with pytest.raises(LensbenchError, match=why) as told:
        Tokens(chat(template), chat_template=True)
    assert "\n" not in str(told.value)
    assert "run without --chat-template" in str(told.value)


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensbench.models.chat.TEMPLATE_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + TURN
    with pytest.raises(LensbenchError, match=r"took more than 0\.2 seconds"):
        Tokens(chat(loop), chat_template=True)


def word_piece() -> Tokens:
    """A tokenizer of whole words, with one token for all that it does not know."""
    pieces = {piece: i for i, piece in enumerate(["[UNK]", "the", "answer", "is", "red", "The"])}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="is"))


def digits() -> Tokens:
    """A tokenizer that splits every blank before a digit, as the built-in model's does."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate("The answris0123456789 ")}, []))
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="T"))


@pytest.mark.parametrize(("known", "answer"), [(word_piece(), "blue"), (digits(), "12"), (digits(), "answer")])
def test_an_answer_whose_first_token_says_nothing_is_refused(known: Tokens, answer: str) -> None:
    with pytest.raises(
        LensbenchError, match=f"the first token of the answer '{answer}' is a bare blank, or stands for"
    ):
        known.require_telling(answer)


def test_an_answer_of_a_word_of_its_own_is_fine() -> None:
    word_piece().require_telling("red")
