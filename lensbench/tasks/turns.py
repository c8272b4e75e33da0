"""Texts that are conversations, before a model's chat template has written them."""

from collections.abc import Sequence

Turn = tuple[str, str]
"""Who speaks, and what is said."""
ASSISTANT = "assistant"


def in_plain_words(turns: Sequence[Turn]) -> str:
    """Return a conversation as people read it: a line for each turn, and none for one in which nothing is said yet."""
    return "\n".join(f"{role}: {text}" for role, text in turns if text)
