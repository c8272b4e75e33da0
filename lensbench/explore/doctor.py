"""The doctor: is this model read correctly? Numbers with their tolerance, before results on it are trusted."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel, relative_deviation
from lensbench.models.model_args import ATTENTION, QUANTISATION
from lensbench.models.patching.generation import try_sharings
from lensbench.models.patching.passes import PatchedPass, Prompt, make_prompt
from lensbench.models.patching.patcher import fastest_mode, try_modes
from lensbench.models.precision import held_as, quantised_maps
from lensbench.models.replay import shared_prefix

LOG = logging.getLogger("lensbench")
TEXTS = (
    "My neighbour often talks about Norway",
    "She wrote a letter",
    "The train from the old harbour to the hills runs twice a day, and never on Sundays",
)
PROMPT = "Ask anyone what they know of {subject} and they will say"
SUBJECTS = ("Norway", "Ada Lovelace", "the Great Barrier Reef", "São Tomé", "O'Brien", "Nürnberg 1945")
CACHE_CHECKS = ("left padding = right padding", "cached = uncached")
SENTENCES = ("We met {} last summer.", "It was {}, of all things", "Tell me about {}")


@dataclass(frozen=True)
class Check:
    """One check of a model: what was compared, how far apart it was, how far it may be."""

    name: str
    figure: str
    tolerance: str
    passed: bool


def examine(model: LanguageModel) -> list[Check]:
    """Run every check. All are made, whatever the first ones say."""
    tolerance = model.tolerance
    checks = loaded_as(model)
    for name, measure in _measures(model):
        LOG.info("%s?", name)
        if name in CACHE_CHECKS and not _keeps_keys_and_values(model):
            checks.append(Check(name, "not applicable: a recurrent state, no keys and values", "-", passed=True))
            continue
        try:
            off = measure()
            checks.append(Check(name, f"{off:.1e}", f"{tolerance:.0e}", off <= tolerance))
        except (LensbenchError, RuntimeError, ValueError, TypeError, IndexError) as error:
            checks.append(Check(name, f"{type(error).__name__}: {str(error)[:80]}", f"{tolerance:.0e}", passed=False))
    LOG.info("read sites, and what patched passes may share")
    return [*checks, *_site_checks(model), *_mode_checks(model)]


def examine_loading(load: Callable[[], LanguageModel]) -> list[Check]:
    """Load a model, run every check, and load it once more: weights that nothing has set are others each time."""
    model = load()
    checks, first = examine(model), model.fingerprint
    del model  # there may be no room for two
    LOG.info("loading it again")
    same = load().fingerprint == first
    return [*checks, Check("two loads have the same weights", "same" if same else "different", "same", same)]


def loaded_as(model: LanguageModel) -> list[Check]:
    """Compare what is in memory with what was asked: precision, attention, and how linear maps are held."""
    args = model.model_args
    maps = quantised_maps(model.module)
    held = ", ".join(f"{count} of {maps.total()} linear maps {kind}" for kind, count in maps.items() if kind)
    quantised: dict[str, Any] = args.get(QUANTISATION, {})
    wanted = " ".join(str(quantised[name]) if name in ("quant_method", "quant_type") else name for name in quantised)
    attention = str(args.get(ATTENTION, "-"))
    found = [
        ("loaded with attention", model.attention, attention, attention in ("-", model.attention)),
        ("loaded with quantisation", held or "none", wanted or "-", bool(held) or not quantised),
    ]
    plain = {weight.dtype for weight in model.module.parameters() if held_as(weight) is None}
    dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in plain))
    return [Check("loaded in dtype", dtypes, "-", passed=True), *(Check(*one) for one in found)]


def _measures(model: LanguageModel) -> Iterator[tuple[str, Callable[[], float]]]:
    yield "last-layer lens = model logits", lambda: _last_layer(model)
    yield "batched = one by one", lambda: _batched(model, left=False)
    yield "left padding = right padding", lambda: _batched(model, left=True)
    yield "cached = uncached", lambda: _cached(model)
    yield "a patched pass with no patch changes nothing", lambda: _patched_clean(model, noop=True)
    yield "a patch with the clean vector of its place changes nothing", lambda: _patched_clean(model, noop=False)


def _keeps_keys_and_values(model: LanguageModel) -> bool:
    """Whether the model is made of attention alone; lensbench itself needs no cache and no padding on the left."""
    try:
        shared_prefix(model, torch.tensor([model.tokens.encode(TEXTS[0]).ids]))
    except Exception:  # a foreign model may raise anything
        return False
    return True


def _logits(model: LanguageModel, ids: Tensor, **arguments: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.module(ids.to(model.device), use_cache=False, **arguments).logits.float()
    return out


def _alone(model: LanguageModel, text: str) -> Tensor:
    """Return the next-token logits of a text run by itself."""
    return _logits(model, torch.tensor([model.tokens.encode(text).ids]))[0, -1]


def _last_layer(model: LanguageModel) -> float:
    ids = torch.tensor([model.tokens.encode(TEXTS[2]).ids])
    return relative_deviation(model.unembed(model.text_residuals(ids)[0]), _logits(model, ids)[0])


def _batched(model: LanguageModel, *, left: bool) -> float:
    rows = [model.tokens.encode(text).ids for text in TEXTS]
    ids, mask = model.tokens.pad(rows)
    positions = torch.tensor([[len(row) - 1] for row in rows])
    if not left:
        last = model.residuals(ids, mask, positions, (model.n_layers,))[0, :, 0]
        together = model.unembed(last)
    else:
        for i, row in enumerate(rows):
            ids[i], mask[i] = ids[i].roll(-len(row)), mask[i].roll(-len(row))
        numbers = (mask.cumsum(1) - 1).clamp(min=0)
        arguments = {"attention_mask": mask.to(model.device)}
        try:
            together = _logits(model, ids, **arguments, position_ids=numbers.to(model.device))[:, -1]
        except TypeError:  # ALiBi models take no position ids: they number by the mask
            together = _logits(model, ids, **arguments)[:, -1]
    return max(relative_deviation(row, _alone(model, text)) for row, text in zip(together, TEXTS, strict=True))


def _cached(model: LanguageModel) -> float:
    ids = torch.tensor([model.tokens.encode(TEXTS[2]).ids], device=model.device)
    with torch.no_grad():
        cache = model.module(ids[:, :-3], use_cache=True).past_key_values
        continued = model.module(ids[:, -3:], past_key_values=cache, use_cache=True).logits[0].float()
    return relative_deviation(continued, _logits(model, ids)[0, -3:])


def _patched_clean(model: LanguageModel, *, noop: bool) -> float:
    """Patch the clean vector at every layer of its own place, or anything at all at a place that nothing reads."""
    prompt = make_prompt(model, PROMPT, "x")
    ids = torch.tensor([prompt.ids])
    layers = range(model.n_layers + 1)
    place = ids.shape[1] - 1 if noop else prompt.position
    clean = model.residuals(ids, torch.ones_like(ids), torch.tensor([[place]]), layers)[:, 0, 0]
    chosen = clean[-1:] if noop else clean
    targets = torch.tensor([model.n_layers]) if noop else torch.arange(model.n_layers + 1)
    patched = PatchedPass(model, Prompt(prompt.ids, place), fastest_mode(model, prompt))
    final = patched.final_residuals(chosen, targets.to(model.device))
    return relative_deviation(model.unembed(final), _logits(model, ids)[0, -1].expand(len(final), -1))


def _site_checks(model: LanguageModel) -> list[Check]:
    """Check that the text up to the read site ends with the subject, wherever it stands and with or without BOS."""
    found = [_finds_site(model, sentence, subject) for sentence in SENTENCES for subject in SUBJECTS]
    return [Check("read sites found by character offset", f"{sum(found)} of {len(found)} right", "all", all(found))]


def _finds_site(model: LanguageModel, sentence: str, subject: str) -> bool:
    text = sentence.format(subject)
    start = text.index(subject)
    try:
        encoding = model.tokens.encode(text)
        begin, end = encoding.offsets[model.tokens.locate(encoding, (start, start + len(subject)))]
    except LensbenchError:
        return False
    wanted = len(model.tokens.prefix) + start + len(subject)
    return len(encoding.text[:end].rstrip()) == wanted and begin < wanted


def _mode_checks(model: LanguageModel) -> list[Check]:
    """Report how much the patched pass can share. A plainer mode is slower, not wrong: it fails no model."""
    prompt = make_prompt(model, PROMPT, "x")
    checks, used = _tried("patched pass", model, list(try_modes(model, prompt)))
    generating, _ = _tried("generation", model, list(try_sharings(PatchedPass(model, prompt, used))))
    return [*checks, *generating]


def _tried(what: str, model: LanguageModel, tried: list[tuple[Any, float, str]]) -> tuple[list[Check], Any]:
    tolerance = model.tolerance
    used = next((way for way, off, _ in tried if off <= tolerance), "plain")
    checks = []
    for way, off, reason in tried:
        figure = f"not used: {reason[:60]}" if reason else f"{off:.1e}" + ("" if off <= tolerance else ": not used")
        checks.append(Check(f"{what}, {way} = plain", figure, f"{tolerance:.0e}", passed=True))
    return [*checks, Check(f"{what} used", used, "-", passed=True)], used
