"""A model asked in plain text: the next token after a text."""

from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from lensbench.models.activations import Reading, capture
from lensbench.models.continuing import go_on
from lensbench.models.language_model import LanguageModel, TokenScores

Key = tuple[tuple[str, ...], tuple[int, ...]]
# How many calls are kept in memory.
KEPT = 256
_SAID: WeakKeyDictionary[LanguageModel, OrderedDict[tuple[tuple[str, ...], int], tuple[str, ...]]] = WeakKeyDictionary()
_MEMORY: WeakKeyDictionary[LanguageModel, OrderedDict[Key, TokenScores]] = WeakKeyDictionary()


def say(model: LanguageModel, texts: Sequence[str], steps: int) -> tuple[str, ...]:
    """Return how the model goes on after each text, greedily, as far as the end of the line.

    The same call is answered from memory: several methods share the same text rivals.
    """
    memory = _SAID.setdefault(model, OrderedDict())
    key = (tuple(texts), steps)
    if key not in memory:
        memory[key] = tuple(first_line(text) for text in go_on(model, texts, steps))
        if len(memory) > KEPT:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]


def first_line(text: str) -> str:
    """Return a generated text up to its first line break: prompts with examples have one a line."""
    return text.strip("\n").partition("\n")[0].strip()


def ask(model: LanguageModel, texts: Sequence[str], token_ids: Sequence[int]) -> TokenScores:
    """Score tokens as the next one after each text.

    The same call is answered from memory: several methods share the same text rivals.

    Raises:
        TokenError: a text of a single token.
    """
    memory = _MEMORY.setdefault(model, OrderedDict())
    key = (tuple(texts), tuple(token_ids))
    if key not in memory:
        readings = []
        for text in texts:
            encoding = model.tokens.encode(text)
            model.tokens.last(encoding)
            readings.append(Reading(encoding.ids))
        distinct = list(dict.fromkeys(readings))
        scores = model.score_tokens(capture(model, distinct, (model.n_layers,)).values[0], token_ids)
        memory[key] = scores.rows(torch.tensor([distinct.index(reading) for reading in readings]))
        if len(memory) > KEPT:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]
