"""One prompt looked into: a lens at each layer and token, a token's state described layer by layer."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError
from lensbench.explore.prompt_tables import Descriptions, LensTable
from lensbench.explore.prompt_terminal import check_prompt_text, check_table, check_token, position_of
from lensbench.inspectors.base import Lens
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.patchscopes.patched import at_layer
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus, lens_cache
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.patching.passes import make_prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.prompting import first_line
from lensbench.models.proofs import keep_proofs
from lensbench.models.tokens import Encoding, Tokens
from lensbench.utils.layer_spec import parse_layers

# SentencePiece writes a blank so; what it decodes has lost a blank at the beginning.
_PIECE_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
STEPS = 20
"""How many tokens a description may have."""


def load_lens(name: str) -> type[Lens]:
    """Import a lens that predicts the next token and needs no labels.

    Raises:
        UsageError: no inspector of that name, or one that is no such lens.
    """
    found = load_inspector(name)
    if not issubclass(found, Lens) or found.learns_from == "labels" or 0 not in found().ahead:
        raise UsageError(
            f"inspector {name!r} gives no distribution of the next token at each layer; name lenses, such as "
            f"{', '.join(one for one in ('logit_lens', 'tuned_lens') if one in find_inspectors())}"
        )
    return found


def fit_lenses(model: LanguageModel, names: Sequence[str]) -> dict[str, Lens]:
    """Fit lenses on the training prose, or take them from the cache."""
    corpus = Corpus(model, cache=lens_cache())
    lenses = [_fitted(load_lens(name)(), model, corpus) for name in names]
    return {lens.name: lens for lens in lenses}


def _fitted(lens: Lens, model: LanguageModel, corpus: Corpus | None) -> Lens:
    target = Target(model)
    lens.check(target, model)
    fitted = lens.fit(target, model, Training(corpus=corpus if lens.learns_from == "corpus" else None))
    assert isinstance(fitted, Lens)
    return fitted


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


def inspect(
    prompt: str,
    model: str | LanguageModel = "smollm2-135m",
    lens: str | Lens = "logit_lens",
    layers: str = "all",
    top: int = 10,
) -> LensTable:
    """Read every token of a prompt at every layer with a lens: what would the model say next, if this layer were last?

    Args:
        prompt: any text.
        model: a name, as for `load_model`, or a loaded model.
        lens: an inspector that gives a distribution of the next token, by name or with settings of your own, such as
            `TunedLens(steps=0)`. What learns from prose is taken from the cache, or learned now.
        layers: `all`, `0,4,8` or `stride:2`.
        top: how many of the likeliest tokens to keep.

    Returns:
        The table: `to_frame()`, `plot()`, `to_html()`; a notebook shows it.

    Raises:
        UsageError: an empty prompt, an unknown lens or layer, or a method that is no lens; before a model is loaded
            where that can be told.
        LensbenchError: a model that cannot be loaded, or a prompt that is too long for it.
    """
    check_table(prompt, lens if isinstance(lens, str) else None, layers, top)
    chosen = load_lens(lens)() if isinstance(lens, str) else lens
    if 0 not in chosen.ahead:
        raise UsageError(f"{chosen.name} does not predict the next token; choose another lens, such as logit_lens")
    loaded = keep_proofs(load_model(model)) if isinstance(model, str) else model
    at = parse_layers(layers, loaded.n_layers)
    encoding = _encode(loaded, prompt)
    corpus = Corpus(loaded, cache=lens_cache()) if chosen.learns_from == "corpus" else None
    return _table(loaded, _fitted(chosen, loaded, corpus), encoding, at, top)


def _encode(model: LanguageModel, prompt: str) -> Encoding:
    encoding = model.tokens.encode(prompt)
    most = model.most_tokens
    if most is not None and len(encoding.ids) > most:
        raise LensbenchError(
            f"the prompt has {len(encoding.ids)} tokens, {model.name} reads at most {most}; give a shorter one"
        )
    if not encoding.ids:
        raise UsageError(f"the tokenizer of {model.name} makes no token of the prompt; give a longer text")
    return encoding


@torch.no_grad()
def _table(model: LanguageModel, lens: Lens, encoding: Encoding, layers: tuple[int, ...], top: int) -> LensTable:
    values = model.text_residuals(torch.tensor([encoding.ids]), (*layers, model.n_layers))
    own = [model.unembed(rows).float().softmax(1).max(1) for rows in values[-1].split(model.head_rows)]
    final = torch.cat([one.indices for one in own])
    at_once = max(1, model.head_rows // 2)
    cells = [
        _layer(lens, layer, list(zip(rows.split(at_once), final.split(at_once), strict=True)), top)
        for layer, rows in zip(layers, values, strict=False)
    ]
    likely, probabilities, given, rank = (np.stack([cell[i].cpu().numpy() for cell in cells]) for i in range(4))
    named = {int(token) for token in (*likely.ravel(), *final.tolist())}
    return LensTable(
        model=model.name,
        lens=lens.name,
        prompt=encoding.text,
        tokens=tuple(word_of(model.tokens, token) for token in encoding.ids),
        layers=layers,
        top=likely,
        probabilities=probabilities,
        final=final.cpu().numpy(),
        final_probability=torch.cat([one.values for one in own]).cpu().numpy(),
        lens_probability=given,
        rank=rank,
        vocabulary=model.vocabulary,
        words={token: word_of(model.tokens, token) for token in sorted(named)},
    )


def _layer(lens: Lens, layer: int, chunks: Sequence[tuple[Tensor, Tensor]], top: int) -> tuple[Tensor, ...]:
    """Return the likeliest tokens, their probabilities, and the final prediction's probability and rank."""
    attempt = lens.ahead.index(0)
    parts = []
    for rows, final in chunks:
        # Probabilities of unlikely tokens underflow to one and the same number: places are counted among the logits.
        logits = lens.logits(layer, rows, attempt).float()
        given = logits.gather(1, final[:, None])
        best = logits.topk(min(top, logits.shape[1]), dim=1)
        scale = logits.logsumexp(1, keepdim=True)
        parts.append((best.indices, (best.values - scale).exp(), (given - scale).exp()[:, 0], (logits > given).sum(1)))
    return tuple(torch.cat(one) for one in zip(*parts, strict=True))


def describe_token(
    prompt: str,
    token: int | str,
    model: str | LanguageModel = "smollm2-135m",
    layers: str = "all",
    patchscope: Patchscope | None = None,
) -> Descriptions:
    """Write one token's state at each layer into another prompt, and let the model go on: what does it take it for?

    With the same model as target and verbalizer this shows what *this reader* can recover from a layer, which includes
    what it knows itself.

    Args:
        prompt: any text.
        token: its number (-1 is the last), or a word of the prompt: its last token, where it occurs last.
        model: a name, as for `load_model`, or a loaded model.
        layers: `all`, `0,4,8` or `stride:2`.
        patchscope: with settings of your own; by default one with the prompt `description`.

    Raises:
        UsageError: an empty prompt, a token or layer that is not there, or token 0, which is an attention sink.
        LensbenchError: a model that cannot be loaded.
    """
    check_prompt_text(prompt)
    check_token(prompt, token)
    parse_layers(layers, None)
    loaded = keep_proofs(load_model(model)) if isinstance(model, str) else model
    method = patchscope or Patchscope(prompt="description")
    at = parse_layers(layers, loaded.n_layers)
    encoding = _encode(loaded, prompt)
    position = _position(loaded, encoding, prompt, token)
    method.check(Target(loaded), loaded)
    fitted = method.fit(Target(loaded), loaded, Training())
    rows = loaded.text_residuals(torch.tensor([encoding.ids]), at)[:, position]
    own = fitted.own_prompt("{subject}")
    patched = make_prompt(loaded, own.text, own.placeholder, fitted.write)
    texts = np.empty((len(at), len(fitted.target_layers_)), dtype=object)
    for column, layer in enumerate(fitted.target_layers_):
        said = patcher_of(loaded).generate(patched, rows, torch.tensor(at_layer(layer, at)), STEPS)
        texts[:, column] = [first_line(text) for text in said]
    word = word_of(loaded.tokens, encoding.ids[position])
    names = tuple(str(layer) for layer in fitted.target_layers_)
    return Descriptions(loaded.name, encoding.text, word, position, at, names, str(own.text), texts)


def _position(model: LanguageModel, encoding: Encoding, prompt: str, token: int | str) -> int:
    """Find a token by its number or by a word."""
    count = len(encoding.ids)
    number = position_of(token)
    if number is None:
        begin = prompt.rindex(str(token))
        return model.tokens.locate(encoding, (begin, begin + len(str(token))))
    position = number + count if number < 0 else number
    if not 0 <= position < count:
        raise UsageError(f"--token {number}: the prompt has tokens 0 to {count - 1} for {model.name}")
    if position == 0:
        raise UsageError("--token 0: the first token is an attention sink, of no use to a reader; choose another")
    return position
