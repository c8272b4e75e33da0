"""Tokens as they are shown: on one line, with nothing that a terminal would obey."""

import unicodedata
from functools import cache
from typing import Any

from lensbench.models.tokens import Tokens

_SIGNS = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}
_BLANK = "\N{OPEN BOX}"
# SentencePiece writes a blank so; what it decodes has lost a blank at the beginning.
_PIECE_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def word_of(tokens: Tokens, token: int) -> str:
    """Return the text of one token, its blanks included; the tokenizer's own name of what is no text by itself."""
    backend: Any = tokens.tokenizer
    piece = backend.convert_ids_to_tokens(token) if token < len(backend) else None
    if piece is None:
        return f"<{token}>"  # rows of the head that no token has
    text = tokens.decode([token])
    if not text or _UNKNOWN in text:
        return _as_bytes(str(piece))
    return f" {text}" if str(piece).startswith(_PIECE_BLANK) and not text.startswith(" ") else text


@cache
def _letters_of_bytes() -> dict[str, int]:
    """Return the byte that each letter of a byte-level tokenizer stands for (GPT-2's table)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _as_bytes(piece: str) -> str:
    """Return a token that is part of a character as its bytes, `<E6 9D>`; another one as the tokenizer names it."""
    table = _letters_of_bytes()
    if piece.startswith("<") or not all(letter in table for letter in piece):
        return piece
    return f"<{' '.join(f'{table[letter]:02X}' for letter in piece)}>"


def visible(word: str) -> str:
    """Return a token in one line: without the blanks around it, which are shown only where there is nothing else."""
    if not word.strip(" "):
        return _BLANK * len(word)
    text = "".join(_sign(character) for character in word.strip(" "))
    # Blanks of other kinds, joiners: nothing would be seen of them.
    return text if text.strip() else " ".join(f"U+{ord(character):04X}" for character in word.strip(" "))


def quoted(word: str) -> str:
    """Return a token in quotation marks, with its blanks."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{''.join(map(_sign, word))}\N{RIGHT DOUBLE QUOTATION MARK}"


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else _UNKNOWN
    # Marks that turn the direction of what follows would reach into the next cell.
    return "" if unicodedata.category(character) == "Cf" else character
