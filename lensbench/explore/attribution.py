"""The logits after a text, taken apart: what each part of the model adds to them."""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from lensbench.models.activations import Reading, capture
from lensbench.models.component_capture import (
    Component,
    capture_component,
    heads_of,
    neuron_directions,
    require_component,
)
from lensbench.models.components import ComponentError, final_norm
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import token_biases, token_directions


def attribute(model: LanguageModel, text: str, tokens: Sequence[str]) -> pd.DataFrame:
    """Take the logits of some words after a text apart: one row a part and word; a word's rows add up to its logit.

    The final norm's scale is kept as it is at the end of the text (Wang et al. 2022, arXiv 2211.00593). The logit is
    the model's own, before a soft-cap where it has one.

    Args:
        model: read at the text's last token.
        text: of two tokens or more.
        tokens: words; the first token of each counts, as it stands after a blank.

    Returns:
        `component`: `embedding`, `head`, `head_bias` (of the map that a block's heads share), `attention` (where there
        are no heads to tell apart: state spaces), `mlp`, `norm_bias` and `unembedding_bias`; `layer`: 0 for the
        embedding, l for the block that makes layer l, none for what comes after the blocks; `head`: from 0, for heads;
        `token`: the word; `logit`: what the part adds.

    Raises:
        ComponentError: the blocks do not come apart, or the final norm cannot be frozen.
        TokenError: a text of one token, or a word without a token of its own.
    """
    ids = _ids(model, text)
    asked = [model.tokens.answer_token(token) for token in tokens]
    norm, directions = final_norm(model), token_directions(model, asked)
    reading, scale = norm.back(directions), _read(model, ids, "final_scale")[0]
    rows: list[tuple[str, int | None, int | None, float, str]] = [
        (name, layer, head, float(logit), token)
        for name, layer, head, vector in _vectors(model, ids)
        for token, logit in zip(tokens, scale * (reading @ vector), strict=True)
    ]
    biases = {"norm_bias": directions @ norm.bias.to(directions.device), "unembedding_bias": token_biases(model, asked)}
    rows += [
        (name, None, None, float(logit), token)
        for name, logits in biases.items()
        for token, logit in zip(tokens, logits, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["component", "layer", "head", "logit", "token"])
    table = table.astype({"layer": "Int64", "head": "Int64"})
    return table[["component", "layer", "head", "token", "logit"]]


def top_neurons(model: LanguageModel, text: str, token: str, count: int = 10) -> pd.DataFrame:
    """Return the neurons of all MLPs that move the logit of a word after a text most, up or down, the largest first.

    Args:
        model: read at the text's last token.
        text: of two tokens or more.
        token: a word; its first token counts, as it stands after a blank.
        count: how many neurons.

    Returns:
        `layer`: of the block that makes it; `neuron`: from 0; `value`: what it holds; `logit`: what it adds.

    Raises:
        ComponentError: the model's MLPs have no neurons of their own.
        TokenError: as `attribute`.
    """
    ids = _ids(model, text)
    values = _read(model, ids, "neurons")[1:]
    reading = final_norm(model).back(token_directions(model, [model.tokens.answer_token(token)]))
    along = torch.cat([neuron_directions(model, layer, reading) for layer in range(1, model.n_layers + 1)])
    logits = values * along * _read(model, ids, "final_scale")[0]
    best = logits.abs().flatten().topk(min(count, logits.numel())).indices
    layers, neurons = best // logits.shape[1], best % logits.shape[1]
    columns = {
        "layer": layers + 1,
        "neuron": neurons,
        "value": values[layers, neurons],
        "logit": logits[layers, neurons],
    }
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _ids(model: LanguageModel, text: str) -> tuple[int, ...]:
    encoding = model.tokens.encode(text)
    model.tokens.last(encoding)  # refuses token 0
    return encoding.ids


def _read(model: LanguageModel, ids: tuple[int, ...], name: Component) -> Tensor:
    """Return one component at the end of one text: [layer, width]."""
    return capture_component(model, [ids], name, range(model.n_layers + 1))[:, 0]


def _has(model: LanguageModel, name: Component) -> bool:
    try:
        require_component(model, name)
    except ComponentError:
        return False
    return True


def _vectors(model: LanguageModel, ids: tuple[int, ...]) -> Iterator[tuple[str, int, int | None, Tensor]]:
    """Yield what each part adds to the residual stream: name, layer, head and [d_model]."""
    yield "embedding", 0, None, capture(model, [Reading(ids)], (0,)).values[0, 0].float()
    heads = _has(model, "heads")
    attention = _read(model, ids, "heads" if heads else "attention")
    mlp = _read(model, ids, "mlp") if _has(model, "mlp") else None
    for layer in range(1, model.n_layers + 1):
        if heads:
            *each, bias = attention[layer].unflatten(0, (heads_of(model) + 1, -1))
            yield from (("head", layer, i, vector) for i, vector in enumerate(each))
            yield "head_bias", layer, None, bias
        else:
            yield "attention", layer, None, attention[layer]
        if mlp is not None:
            yield "mlp", layer, None, mlp[layer]
