"""Conversations as a tokenizer's chat template writes them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lensbench.errors import TokenError
from lensbench.tasks.turns import ASSISTANT, Turn
from lensbench.utils.foreign import time_limit

LOG = logging.getLogger("lensbench")
TEMPLATE_SECONDS = 10.0
"""How long a chat template may take; some do not end by themselves."""
# The day that templates are told it is: a model's fingerprint must not change with the clock.
_DAY = datetime(2024, 7, 26, tzinfo=UTC)
_ANSWER = "ANSWER-BEGINS-HERE"
OPENING: tuple[Turn, ...] = (("user", "Continue."),)


@dataclass(frozen=True)
class Conversation:
    """What is put to a model under its chat template, up to where its answer begins.

    Attributes:
        turns: the last one is the answer's: its role, usually `assistant`, and the words that it begins with, if any.
    """

    turns: tuple[Turn, ...]

    def __str__(self) -> str:
        return "\n".join(f"{role}: {text}".rstrip() for role, text in self.turns)

    def __contains__(self, part: str) -> bool:
        return any(part in text for _, text in self.turns)

    @property
    def spaced(self) -> bool:
        """Whether what follows begins with a space; at the beginning of a turn it does not."""
        return self.turns[-1][1][-1:].isalnum()

    @property
    def closing(self) -> str:
        """What ends an answer before the turn does: the quotation mark that the answer's turn has opened, if any."""
        return '"' if self.turns[-1][1].count('"') % 2 else ""

    def replace(self, old: str, new: str) -> "Conversation":
        """Return the conversation with another text in place of one."""
        return Conversation(tuple((role, text.replace(old, new)) for role, text in self.turns))


Text = str | Conversation
"""What is put to a model: a plain text, or a conversation."""


def render_chat(tokenizer: Any, conversation: Conversation) -> str:
    """Return a conversation as a tokenizer's chat template writes it, special tokens spelled out.

    Thinking is switched off where a template can do so (`enable_thinking`).

    Raises:
        TokenError: the tokenizer has no template, or its template fails on these roles or leaves out what they say.
    """
    *said, (role, begun) = conversation.turns
    if role == ASSISTANT:
        return _apply(tokenizer, said, add_generation_prompt=True, enable_thinking=False) + begun
    # A template's generation prompt knows no other role than its own.
    return _apply(tokenizer, [*said, (role, _ANSWER)], enable_thinking=False).partition(_ANSWER)[0] + begun


def opening_of_answers(tokenizer: Any) -> str:
    """Return the beginning of the assistant's turn after a turn of the user's, under a tokenizer's chat template.

    Raises:
        TokenError: there is no template, or none that begins such a turn.
    """
    try:
        without, opened = (_apply(tokenizer, OPENING, add_generation_prompt=answer) for answer in (False, True))
        if opened == without:
            raise TokenError("the tokenizer's chat template begins no turn of the assistant")
    except TokenError as error:
        raise TokenError(f"{error}; run without --chat-template") from None
    return opened


def end_of_turn(tokenizer: Any) -> str:
    """Return what a tokenizer's chat template puts after a turn of the assistant's, such as `<|im_end|>`; else nothing.

    Raises:
        TokenError: there is no template, or it is of no use.
    """
    return _apply(tokenizer, (*OPENING, (ASSISTANT, _ANSWER))).partition(_ANSWER)[2].strip()


def _apply(tokenizer: Any, turns: Sequence[Turn], **options: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise TokenError("the tokenizer has no chat template")
    # Templates of models that read images as well want a list of parts.
    reasons = []
    for parts in (False, True):
        said = [[{"type": "text", "text": text}] if parts else text for _, text in turns]
        messages = [{"role": role, "content": content} for (role, _), content in zip(turns, said, strict=True)]
        try:
            with time_limit(TEMPLATE_SECONDS, "the chat template"), _same_day() as asked:
                text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # whatever a template raises
            reasons.append(f"fails: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        # A template that wants plain texts may write a list of parts as Python does.
        if all(part.strip() in text for _, part in turns) and not (parts and repr(said[0]) in text):
            if asked and options.get("add_generation_prompt"):
                LOG.info("the chat template asks for the date; it is told %s, always", _DAY.date())
            return text
        reasons.append("leaves a turn's text out")
    raise TokenError(f"the tokenizer's chat template {reasons[0]}")


@contextmanager
def _same_day() -> Iterator[list[datetime]]:
    """Let templates ask for the date and be told `_DAY`; yield a list with an element for each time that they asked.

    transformers gives templates a function that reads the clock, and lets nobody replace it.
    """
    from transformers.utils import chat_template_utils

    asked: list[datetime] = []

    class Clock:
        """Stands in for the class datetime."""

        @staticmethod
        def now(_zone: object = None) -> datetime:
            asked.append(_DAY)
            return _DAY

    templates: Any = chat_template_utils
    before, templates.datetime = templates.datetime, Clock
    try:
        yield asked
    finally:
        templates.datetime = before
