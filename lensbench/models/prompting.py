"""A model prompted in plain text: the scores of the next token, and greedy continuations."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from lensbench.models.activations import Reading, capture
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Memo, is_out_of_memory
from lensbench.models.proofs import proved
from lensbench.models.token_scores import TokenScores, score_in_steps

LOG = logging.getLogger("lensbench")
CPU_TEXTS = 64
# Whether texts may be padded is tried on so many of them, for so many tokens.
TRIAL_TEXTS, TRIAL_STEPS = 4, 4
# How many calls are kept in memory.
KEPT = 256


Ids = tuple[int, ...]


@torch.no_grad()
def continue_texts(model: LanguageModel, texts: Sequence[Text], steps: int) -> tuple[str, ...]:
    """Return the most likely continuation of each text: at most `steps` tokens, to the first end-of-text token.

    Texts of like length are run together, padded on the left where that is proved to change nothing on this model, else
    only texts of equal length. Batches are a function of the texts and the memory budget alone.
    """
    rows = [model.tokens.encode(text).ids for text in texts]
    distinct = sorted(set(rows), key=lambda ids: (len(ids), ids))
    same_length = len(distinct[0]) == len(distinct[-1]) if distinct else True
    # Tried once a model, on the first texts that differ in length.
    padded = same_length or proved(
        model, "pads_texts", lambda: _may_pad(model, distinct), lambda pads: not pads or _may_pad(model, distinct, 2, 1)
    )

    def size(begin: int) -> int:
        longest = len(distinct[begin]) + steps
        most = max(1, model.budget.rows(model.token_bytes * longest * 2, cpu_most=CPU_TEXTS))
        alike = (len(ids) == len(distinct[begin]) for ids in distinct[begin : begin + most])
        return most if padded else sum(takewhile(bool, alike))

    batches = model.budget.in_batches(len(distinct), size, lambda rows: _generate(model, distinct[rows], steps))
    said = [model.tokens.decode(new, model.end_ids) for batch in batches for new in batch.tolist()]
    place = {ids: i for i, ids in enumerate(distinct)}
    return tuple(said[place[ids]] for ids in rows)


def _may_pad(model: LanguageModel, distinct: Sequence[Ids], texts: int = TRIAL_TEXTS, steps: int = TRIAL_STEPS) -> bool:
    """Whether padding changes no token, tried on the shortest and longest of some texts."""
    some = [*distinct[: texts // 2], *distinct[-texts // 2 :]]
    try:
        together = _generate(model, some, steps)
        alone = torch.cat([_generate(model, [ids], steps) for ids in some])
        same = bool((together == alone).all())
    except Exception as error:  # whatever foreign code raises that expects no padding
        if is_out_of_memory(error):
            raise
        same = False
    if not same:
        LOG.info("%s: texts are continued in batches of equal length", model.name)
    return same


def _generate(model: LanguageModel, rows: Sequence[Ids], steps: int) -> Int[Tensor, "row step"]:
    width = max(len(ids) for ids in rows)
    pad = model.end_ids[0] if model.end_ids else model.tokens.pad_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=steps, eos_token_id=list(model.end_ids) or None, pad_token_id=pad
    )
    with _without_own_settings(model.module):
        new: Tensor = model.module.generate(  # type: ignore[operator]
            ids, attention_mask=mask, generation_config=greedy
        )[:, width:]
    # All may have ended before the last step.
    return torch.nn.functional.pad(new, (0, steps - new.shape[1]), value=pad)


@contextmanager
def _without_own_settings(module: Any) -> Iterator[None]:
    """Set the model's own settings of generation aside: its penalties would be merged into any others."""
    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own


def continue_line(model: LanguageModel, texts: Sequence[Text], steps: int) -> tuple[str, ...]:
    """Return how the model continues each text, greedily, up to the end of the line.

    The same call is answered from memory: several methods share the same text baselines.
    """
    memo = model.cache.get_or_compute("continued_lines", lambda: Memo(KEPT))
    return memo.get_or_compute(
        (tuple(texts), steps), lambda: tuple(first_line(text) for text in continue_texts(model, texts, steps))
    )


def first_line(text: str) -> str:
    """Return a generated text up to its first line break: prompts with examples have one a line."""
    return text.strip("\n").partition("\n")[0].strip()


def score_answers(
    model: LanguageModel, texts: Sequence[Text], answers: Sequence[str], *, whole: bool = False
) -> TokenScores:
    """Score answers as what comes next after each text, by the tokens that tell them apart; see `Tokens.telling_ids`.

    Args:
        model: the model that is asked.
        texts: plain texts, or conversations, not both.
        answers: the answers.
        whole: score all tokens of each answer instead.

    Raises:
        TokenError: a text of a single token, or an answer that the tokenizer gives none.
    """
    encoded = [model.tokens.encode(text) for text in texts]
    for encoding in encoded:
        model.tokens.last(encoding)
    ids = (model.tokens.whole_ids if whole else model.tokens.telling_ids)(answers, texts[0])
    return score_in_steps(ids, lambda begun, asked: _score_next(model, [one.ids + begun for one in encoded], asked))


def score_next_tokens(model: LanguageModel, texts: Sequence[str], token_ids: Sequence[int]) -> TokenScores:
    """Score tokens as the next one after each text.

    The same call is answered from memory: several methods share the same text baselines.

    Raises:
        TokenError: a text of a single token.
    """
    encoded = [model.tokens.encode(text) for text in texts]
    for encoding in encoded:
        model.tokens.last(encoding)
    return _score_next(model, [encoding.ids for encoding in encoded], token_ids)


def _score_next(model: LanguageModel, encoded: Sequence[Ids], token_ids: Sequence[int]) -> TokenScores:
    memo = model.cache.get_or_compute("next_token_scores", lambda: Memo(KEPT))
    # In an order of their own: the same texts of other items, in another order, are the same call and the same batches.
    distinct = tuple(sorted(set(encoded)))

    def score() -> TokenScores:
        last = capture(model, [Reading(ids) for ids in distinct], (model.n_layers,)).values[0]
        return model.score_tokens(last, token_ids)

    scores = memo.get_or_compute((distinct, tuple(token_ids)), score)
    place = {ids: i for i, ids in enumerate(distinct)}
    return scores.rows(torch.tensor([place[ids] for ids in encoded]))
