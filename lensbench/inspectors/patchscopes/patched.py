"""What methods share that patch vectors into a prompt of their own: the prompts by name, target layers, and scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.inspectors.base import OwnPrompt
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.inspectors.target import Target
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Prompt, Write, make_prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.prompting import first_line
from lensbench.tasks.facts import SLOT
from lensbench.utils.layer_spec import parse_layers

SAME = "same"
"""The target layer that is the source layer."""
TargetLayers = tuple[int | str, ...]

# The first three are those of the paper (arXiv 2401.06102, section 4.1).
DEMONSTRATIONS = ("cat", "1135", "hello", "green", "7", "river", "Paris", "seven", "+", "under")
DESCRIPTION = (
    "Peru: Country on the west coast of South America\n"
    "Johann Strauss: Austrian composer of waltzes\n"
    "Volvo: Swedish maker of cars and lorries\n"
    f"{SLOT}:"
)
INSTRUCTION = f"Message: {' '.join([SLOT] * 5)}\nIn other words, the message is about"
NAMES = ("token_identity", "description", "instruction")
"""Prompts by name: the identity of tokens (`token_identity:5` with five demonstrations), a description in a line after
three examples, and an instruction with five slots in the manner of SelfIE (arXiv 2403.10949)."""

# A question in the manner of the tasks': placeholders are tried in it before a relation's own is known.
_CARRIER = f"They say that {SLOT} is"


def prompt_text(method: str, prompt: str | None, question: str) -> str:
    """Return the text of a prompt: the question for None, one of ours by its name, or the given text.

    Raises:
        UsageError: neither a name nor a text with a slot.
    """
    if prompt is None:
        return question
    if SLOT in prompt:
        return prompt
    name, colon, count = prompt.partition(":")
    if name == "token_identity":
        return _token_identity(method, prompt, count if colon else "3")
    texts = {"description": DESCRIPTION, "instruction": INSTRUCTION}
    if prompt not in texts:
        raise unknown_name(f"{method}.prompt", prompt, NAMES, f"or give a text with a {SLOT} slot")
    return texts[prompt]


def _token_identity(method: str, prompt: str, count: str) -> str:
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= len(DEMONSTRATIONS)):
        raise UsageError(
            f"{method}.prompt = {prompt!r}: expected a number of demonstrations from 1 to {len(DEMONSTRATIONS)}"
        )
    return "".join(f"{word} -> {word}\n" for word in DEMONSTRATIONS[: int(count)]) + SLOT


def check_prompt(method: str, verbalizer: LanguageModel, prompt: str | None, placeholder: str) -> None:
    """Refuse a prompt without a slot, and a placeholder that is not one token.

    Raises:
        UsageError: either.
    """
    text = prompt_text(method, prompt, _CARRIER)
    try:
        make_prompt(verbalizer, text, placeholder)
    except LensbenchError as error:
        raise UsageError(f"{method}: {error}") from None


def check_width(method: str, target: Target, verbalizer: LanguageModel) -> None:
    """Refuse a verbalizer of another width.

    Raises:
        UsageError: it is of another width.
    """
    if target.d_model != verbalizer.d_model:
        raise UsageError(
            f"{method}: {target.name} has width {target.d_model}, verbalizer {verbalizer.name} "
            f"{verbalizer.d_model}; choose a verbalizer of the same width, or mapped_patchscope, which learns a map "
            "between the two"
        )


def chosen_layers(method: str, given: TargetLayers | str, target: Target, verbalizer: LanguageModel) -> TargetLayers:
    """Return the target layers of a tuple of numbers and `same`, or of `same`, `all`, `0,4,8` or `stride:4`.

    Raises:
        UsageError: a layer that the verbalizer lacks, the same one twice, or none.
    """
    if isinstance(given, str) and given != SAME:
        return parse_layers(given, verbalizer.n_layers, f"{method}: target_layers")
    layers = (SAME,) if isinstance(given, str) else given
    # True is an integer for Python, and no layer.
    known = [layer == SAME or (type(layer) is int and 0 <= layer <= verbalizer.n_layers) for layer in layers]
    if not layers or not all(known) or len(set(layers)) < len(layers):
        raise UsageError(
            f"{method}: target_layers {given}; {verbalizer.name} has layers 0 to {verbalizer.n_layers}; give different "
            "ones, 'same' for the source layer, 'all' or 'stride:4'"
        )
    if SAME in layers and target.n_layers > verbalizer.n_layers:
        raise UsageError(
            f"{method}: target layer 'same'; {target.name} has {target.n_layers} layers, verbalizer {verbalizer.name} "
            f"only {verbalizer.n_layers}: give numbers"
        )
    return layers


def attempt_name(name: str, target_layer: int | str, variant: str = "") -> AttemptName:
    """Return the name of an attempt at a target layer, which may be `same`."""
    return AttemptName(name, None if isinstance(target_layer, str) else target_layer, variant)


def at_layer(target_layer: int | str, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the target layer of each source layer."""
    return tuple(layer if isinstance(target_layer, str) else target_layer for layer in layers)


@dataclass(frozen=True)
class Attempt:
    """What one attempt writes.

    Attributes:
        name: its name, with its target layer.
        vectors: what is written, one a source layer and item.
        target_layers: where, one a source layer.
    """

    name: AttemptName
    vectors: Float[Tensor, "layer item d_model"]
    target_layers: tuple[int, ...]


def read_patched(
    verbalizer: LanguageModel, own: OwnPrompt, attempts: Iterable[Attempt], evidence: Evidence, write: Write
) -> Scores:
    """Patch the vectors of each attempt into a prompt and score the answers as its next word.

    Where a description is asked for, the verbalizer goes on from there. Attempts are taken one by one: a grid of
    source and target layers does not have to fit into memory.
    """
    prompt = make_prompt(verbalizer, own.text, own.placeholder, write)
    names, found, shape = [], [], (0, 0)
    for attempt in attempts:
        layers, items, _ = attempt.vectors.shape
        at = torch.tensor(attempt.target_layers).repeat_interleave(items)
        names.append(attempt.name)
        found.append(ask_patched(verbalizer, prompt, own.text, attempt.vectors.flatten(0, 1), at, evidence))
        shape = (layers, items)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.unflatten(0, shape) for part in parts], dim=1)

    whole = [one.whole for one in found if one.whole is not None]
    texts = [np.array(one.texts, dtype=object).reshape(shape) for one in found if one.texts]
    return Scores(
        tuple(names),
        stacked([one.log_probs for one in found]),
        stacked([one.ranks for one in found]),
        np.stack(texts, axis=1) if texts else None,
        whole=stacked(whole) if whole else None,
    )


@dataclass(frozen=True)
class Said:
    """What a patched verbalizer says next.

    Attributes:
        log_probs: of the answers.
        ranks: of the answers.
        whole: log-probabilities of the answers to their last tokens, where the evidence asks for them.
        texts: how it continues, where a description is asked for.
    """

    log_probs: Float[Tensor, "row answer"]
    ranks: Int[Tensor, "row answer"]
    whole: Float[Tensor, "row answer"] | None
    texts: tuple[str, ...]


def ask_patched(
    verbalizer: LanguageModel,
    prompt: Prompt,
    text: Text,
    rows: Float[Tensor, "row width"],
    at: Int[Tensor, " row"],
    evidence: Evidence,
) -> Said:
    """Patch rows into a prompt, and return what the verbalizer says next: as much of it as the evidence asks for.

    Args:
        verbalizer: the model that is patched.
        prompt: the prompt.
        text: what the prompt was made of.
        rows: what is written.
        at: the layer where each row is written.
        evidence: whose answers are scored.
    """
    tokens, patcher, whole = verbalizer.tokens, patcher_of(verbalizer), None
    scores = patcher.score_answers(prompt, rows, at, tokens.telling_ids(evidence.answers, text))
    if evidence.whole_answers:
        whole = patcher.score_answers(prompt, rows, at, tokens.whole_ids(evidence.answers, text)).log_probs
    said = patcher.generate(prompt, rows, at, evidence.describe) if evidence.describe else ()
    return Said(scores.log_probs, scores.ranks, whole, tuple(map(first_line, said)))
