"""Text to token ids, and characters to token positions."""

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lensbench.errors import TokenError
from lensbench.models.chat import OPENING, Conversation, Text, end_of_turn, opening_of_answers, render_chat
from lensbench.tasks.turns import ASSISTANT, Turn

# What an answer is appended to when its first token is asked for: an ordinary word, so that the answer gets its
# leading space.
CARRIER = "The answer is"


@dataclass(frozen=True)
class Encoding:
    """Token ids of one text, with the characters that each token covers (special tokens cover none).

    Attributes:
        text: the text, with what was put before it.
        ids: its tokens.
        offsets: the characters of `text` that each of them covers.
        begin: where the given text begins in `text`.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    begin: int = 0


class Tokens:
    """A fast tokenizer, behind the few questions that lensbench asks of it.

    Args:
        tokenizer: a fast tokenizer of transformers (character offsets are needed).
        chat_template: put every text at the beginning of the assistant's turn of the tokenizer's chat template.

    Raises:
        TokenError: the tokenizer has no character offsets, or no chat template where one was asked for.
    """

    def __init__(self, tokenizer: Any, *, chat_template: bool = False) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TokenError(
                f"tokenizer {type(tokenizer).__name__} gives no character offsets; lensbench finds read sites by "
                "them: use the model's fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.prefix = opening_of_answers(tokenizer) if chat_template else ""
        pad = tokenizer.pad_token_id
        # Padded positions are masked, so any valid id serves where the tokenizer names none.
        self.pad_id = int(pad) if pad is not None else int(tokenizer.eos_token_id or 0)
        self._answer_tokens: dict[str, int] = {}

    @property
    def definition(self) -> str:
        """The whole tokenizer as JSON, without the padding that whoever called it last asked for."""
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())

    def encode(self, text: Text) -> Encoding:
        """Encode as the model's own convention has it (BOS where it adds one), without special tokens at the end.

        A conversation is encoded as its template has written it.
        """
        if isinstance(text, Conversation):
            return self._encode(self.rendered(text))
        return self._encode(self.prefix + text, begin=len(self.prefix), special=not self.prefix)

    def rendered(self, text: Text) -> str:
        """Return a text as the model gets it: a conversation as the chat template writes it.

        Raises:
            TokenError: there is no template, or it cannot write these turns.
        """
        return render_chat(self.tokenizer, text) if isinstance(text, Conversation) else self.prefix + text

    def written(self, turns: Sequence[Turn]) -> str:
        """Return a conversation as a plain text for `encode`, which begins with BOS where the tokenizer adds one.

        Raises:
            TokenError: there is no template, it cannot write these turns, or every text is put in a chat already.
        """
        if self.prefix:
            raise TokenError("its text is a conversation already; run without --chat-template")
        text = render_chat(self.tokenizer, Conversation(tuple(turns)))
        bos = self.tokenizer.bos_token
        twice = bos is not None and self.encode(text).ids[:2] == (self.tokenizer.bos_token_id,) * 2
        return text.removeprefix(bos) if twice else text

    def _encode(self, whole: str, *, begin: int = 0, special: bool = False) -> Encoding:
        encoded = self.tokenizer(whole, return_offsets_mapping=True, add_special_tokens=special)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        while ids and ids[-1] in self.special_ids and offsets[-1][0] == offsets[-1][1]:
            ids.pop(), offsets.pop()
        return Encoding(whole, tuple(ids), tuple((int(a), int(b)) for a, b in offsets), begin)

    def locate(self, encoding: Encoding, span: tuple[int, int]) -> int:
        """Return the position of the token that holds the last character of `span` (characters of the unprefixed text).

        Raises:
            TokenError: no token holds it, the token runs on into the next word, or it is token 0 (an attention sink).
        """
        end = span[1] + encoding.begin
        holding = [i for i, (a, b) in enumerate(encoding.offsets) if a < end <= b]
        shown = f"{encoding.text[span[0] + encoding.begin : end]!r} in {encoding.text!r}"
        if not holding:
            raise TokenError(f"the tokenizer finds no token for the end of {shown}; rephrase the text")
        position = holding[-1]
        if encoding.text[end : encoding.offsets[position][1]].strip():
            raise TokenError(f"the tokenizer merges the end of {shown} with what follows; put a space after it")
        if position == 0:
            raise TokenError(
                f"{shown} is read at token 0, an attention sink; begin the text with other words, before the subject"
            )
        return position

    def ends(self, encoding: Encoding, span: tuple[int, int]) -> tuple[int, ...]:
        """Return where each token of a span ends (characters of the unprefixed text), the last at the span's end.

        Tokens that share one character count as one.
        """
        shift = encoding.begin
        begin, end = span[0] + shift, span[1] + shift
        inside = {
            min(b, end) - shift for a, b in encoding.offsets if a < end and b > begin and encoding.text[a:b].strip()
        }
        return tuple(sorted(inside | {span[1]}))

    def last(self, encoding: Encoding) -> int:
        """Return the position of the last token.

        Raises:
            TokenError: the text has a single token, which is token 0.
        """
        if len(encoding.ids) < 2:
            raise TokenError(f"{encoding.text!r} is read at token 0, an attention sink; use a longer text")
        return len(encoding.ids) - 1

    def answer_token(self, answer: str) -> int:
        """Return the first token of an answer that follows a text after a space.

        Raises:
            TokenError: the answer changes the tokens of the text before it, or has no token of its own.
        """
        if answer not in self._answer_tokens:
            before = self.encode(CARRIER).ids
            after = self.encode(f"{CARRIER} {answer}").ids
            if after[: len(before)] != before or len(after) == len(before):
                raise TokenError(f"the tokenizer gives the answer {answer!r} no token of its own after {CARRIER!r}")
            self._answer_tokens[answer] = after[len(before)]
        return self._answer_tokens[answer]

    def answer_ids(self, answer: str, text: Text = CARRIER) -> tuple[int, ...]:
        """Return all tokens of an answer that follows a text: after a space, or at the beginning of a turn without one.

        Raises:
            TokenError: the answer has no token of its own there.
        """
        if not isinstance(text, Conversation) or text.spaced:
            rest = self.encode(f"{CARRIER} {answer}").ids[len(self.encode(CARRIER).ids) + 1 :]
            return (self.answer_token(answer), *rest)
        before, after = self._opening.ids, self._encode(self._opening.text + answer).ids
        if after[: len(before)] != before or len(after) == len(before):
            raise TokenError(f"the tokenizer gives the answer {answer!r} no token of its own where a turn begins")
        return after[len(before) :]

    def telling_ids(self, answers: Sequence[str], text: Text = CARRIER) -> tuple[tuple[int, ...], ...]:
        """Return the tokens by which answers to a text are scored.

        After a plain text that is the first token of each; tasks see to it that choices differ there. At the beginning
        of a turn answers lack their leading space and often begin alike: there it is as many tokens of each as tell it
        from the others, with what ends it (a quotation mark that the turn has opened, the end of the turn) after an
        answer that is the beginning of another.

        Raises:
            TokenError: an answer has no token of its own there.
        """
        if not isinstance(text, Conversation):
            return tuple((self.answer_token(answer),) for answer in answers)
        whole = self.whole_ids(answers, text)
        begun = Counter(ids[:n] for ids in set(whole) for n in range(1, len(ids) + 1))
        return tuple(ids[: next((n for n in range(1, len(ids)) if begun[ids[:n]] == 1), len(ids))] for ids in whole)

    def whole_ids(self, answers: Sequence[str], text: Text = CARRIER) -> tuple[tuple[int, ...], ...]:
        """Return all tokens of answers to a text; at the beginning of a turn, with what ends them.

        Raises:
            TokenError: an answer has no token of its own there.
        """
        if not isinstance(text, Conversation):
            return tuple(self.answer_ids(answer, text) for answer in answers)
        return tuple((*self.answer_ids(answer + text.closing, text), self.turn_end) for answer in answers)

    @cached_property
    def turn_end(self) -> int:
        """The token that ends an answer under the chat template; without a template, the one that ends a text."""
        if getattr(self.tokenizer, "chat_template", None):
            ids = self._encode(end_of_turn(self.tokenizer)).ids
            if ids and ids[0] in self.special_ids:
                return ids[0]
        return int(self.tokenizer.eos_token_id or 0)

    @cached_property
    def _opening(self) -> Encoding:
        return self.encode(Conversation((*OPENING, (ASSISTANT, ""))))

    def require_telling(self, answer: str) -> None:
        """Refuse an answer whose first token says nothing of it.

        Raises:
            TokenError: the token is a bare blank, stands for whatever the vocabulary lacks, or is not the answer's own.
        """
        first = self.answer_token(answer)
        if first == self.tokenizer.unk_token_id or not self.decode([first]).strip():
            raise TokenError(
                f"the first token of the answer {answer!r} is a bare blank, or stands for any unknown word"
            )

    def decode(self, ids: Sequence[int], ends: Collection[int] = ()) -> str:
        """Return the text of tokens, up to the first of those that end a text."""
        kept = list(takewhile(lambda token: token not in ends, ids))
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
        """Pad on the right, where a causal model cannot see it; return ids and attention mask."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask


@dataclass(frozen=True)
class PairedText:
    """A text as two models see it.

    Attributes:
        ids: the tokens of one.
        other_ids: the tokens of the other.
        positions: pairs of positions that are the same place of the text; neither is 0, an attention sink.
    """

    ids: tuple[int, ...]
    other_ids: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]


def same_tokenizer(one: Tokens, other: Tokens) -> bool:
    """Whether two models split texts alike, so that one's tokens can be given to the other."""
    if one is other:
        return True
    texts = [tokens.definition for tokens in (one, other)]
    return bool(texts[0] == texts[1])


def pair_window(encoding: Encoding, window: range, other: Tokens) -> PairedText:
    """Pair the positions of some tokens of a text with those of another tokenizer on the characters that they cover.

    Two tokens are a pair that end at the same character, each the last of its text that does.
    """
    ids = tuple(encoding.ids[i] for i in window)
    spans = [encoding.offsets[i] for i in window]
    covered = [span for span in spans if span[0] < span[1]]
    begin, end = (covered[0][0], covered[-1][1]) if covered else (0, 0)
    found = other.encode(encoding.text[begin:end])
    own = _ends([(a - begin, b - begin) for a, b in spans])
    theirs = _ends([(a - found.begin, b - found.begin) for a, b in found.offsets])
    pairs = tuple((own[at], theirs[at]) for at in sorted(own.keys() & theirs.keys()))
    return PairedText(ids, found.ids, tuple(pair for pair in pairs if min(pair) > 0))


def _ends(spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the last token that ends at each character."""
    return {b: i for i, (a, b) in enumerate(spans) if a < b and b > 0}
