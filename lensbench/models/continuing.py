"""Greedy continuation of plain texts, by transformers' own generation."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from lensbench.models.budget import is_out_of_memory
from lensbench.models.language_model import LanguageModel

LOG = logging.getLogger("lensbench")
CPU_TEXTS = 64
# Whether texts may be padded is tried on so many of them, for so many tokens.
TRIED, TRIED_STEPS = 4, 4

Ids = tuple[int, ...]


@torch.no_grad()
def go_on(model: LanguageModel, texts: Sequence[str], steps: int) -> tuple[str, ...]:
    """Return the most likely continuation of each text: at most `steps` tokens, to the first end-of-text token.

    Texts of like length are run together, padded on the left where that is proved to change nothing on this model, else
    only texts of equal length. Batches are a function of the texts and the memory budget alone.
    """
    rows = [model.tokens.encode(text).ids for text in texts]
    distinct = sorted(set(rows), key=lambda ids: (len(ids), ids))
    padded = _may_pad(model, distinct)

    def size(begin: int) -> int:
        longest = len(distinct[begin]) + steps
        most = max(1, model.budget.rows(model.token_bytes * longest * 2, cpu_most=CPU_TEXTS))
        alike = (len(ids) == len(distinct[begin]) for ids in distinct[begin : begin + most])
        return most if padded else sum(takewhile(bool, alike))

    batches = model.budget.in_batches(len(distinct), size, lambda rows: _generate(model, distinct[rows], steps))
    said = [model.tokens.decode(new, model.end_ids) for batch in batches for new in batch.tolist()]
    place = {ids: i for i, ids in enumerate(distinct)}
    return tuple(said[place[ids]] for ids in rows)


def _may_pad(model: LanguageModel, distinct: Sequence[Ids]) -> bool:
    """Whether padding changes no token; tried once a model, on the shortest and longest of some texts."""
    if "pads_texts" not in model.companions:
        if len({len(ids) for ids in distinct}) < 2:
            return True  # nothing to pad
        some = [*distinct[: TRIED // 2], *distinct[-TRIED // 2 :]]
        try:
            together = _generate(model, some, TRIED_STEPS)
            alone = torch.cat([_generate(model, [ids], TRIED_STEPS) for ids in some])
            same = bool((together == alone).all())
        except Exception as error:  # whatever foreign code raises that expects no padding
            if is_out_of_memory(error):
                raise
            same = False
        if not same:
            LOG.info("%s: texts are gone on with in batches of equal length", model.name)
        model.companions["pads_texts"] = same
    return bool(model.companions["pads_texts"])


def _generate(model: LanguageModel, rows: Sequence[Ids], steps: int) -> Int[Tensor, "row step"]:
    width = max(len(ids) for ids in rows)
    pad = model.end_ids[0] if model.end_ids else model.tokens.pad_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=steps, eos_token_id=list(model.end_ids) or None, pad_token_id=pad
    )
    with _own_settings_aside(model.module):
        new: Tensor = model.module.generate(  # type: ignore[operator]
            ids, attention_mask=mask, generation_config=greedy
        )[:, width:]
    # All may have ended before the last step.
    return torch.nn.functional.pad(new, (0, steps - new.shape[1]), value=pad)


@contextmanager
def _own_settings_aside(module: Any) -> Iterator[None]:
    """Without the model's own settings of generation: penalties and the like would be taken into any other's."""
    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own
