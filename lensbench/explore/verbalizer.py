"""The doctor of trained verbalizers: is it asked as it was trained to be, and does it read what it is given?"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.explore.doctor import Check
from lensbench.explore.verbalizer_probes import Probes, Verbalizer, behaviour
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.nla import NLA
from lensbench.inspectors.verbalizers.nla_meta import SIDECAR
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS, Recipe, read_notes
from lensbench.inspectors.verbalizers.selfie_adapter import ADAPTER as SOFT_TOKEN
from lensbench.inspectors.verbalizers.selfie_adapter import SelfIEAdapter
from lensbench.models.hub import is_pinned
from lensbench.models.language_model import LanguageModel, relative_deviation
from lensbench.models.patching.passes import Prompt
from lensbench.models.patching.patcher import patcher_of

QUESTION = "What is the capital of {subject}?"
# Activations may be so many times longer or shorter than those of training.
NORM_FACTOR = 2.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a verbalizer.

    Attributes:
        prompt: the prompt as the model gets it, each activation's token between `[[` and `]]`.
        checks: what was compared.
        notes: what figures that are not as expected mean, one line each.
    """

    prompt: str
    checks: list[Check]
    notes: list[str]


def examine_verbalizer(model: LanguageModel, given: str, settings: Mapping[str, Any]) -> Diagnosis:
    """Check how a verbalizer is asked; and, of a trained one, whether it reads activations.

    Args:
        model: the base model, which is the target as well.
        given: see `find_verbalizer`.
        settings: of the method that asks it, in place of those that are recorded.

    Raises:
        UsageError: no verbalizer, or one that does not fit the model.
    """
    method = find_verbalizer(given, settings)
    if isinstance(method, Oracle) and method.adapter is None:
        return Diagnosis(*_asked(model, method.recipe()), [])
    before = _logits(model)
    method.check(Target(model), model)
    fitted = copy(method).fit(Target(model), model, Training())
    if isinstance(fitted, Oracle):
        prompt, checks = _asked(model, fitted.recipe())
    else:
        slots = Slots.of(fitted)
        prompt, checks = slots.rendered(), [*slots.checks(), slots.bos()]
    off = relative_deviation(_logits(model), before)
    checks.append(Check("adapter off = base", f"{off:.1e}", "0", off == 0))
    probes = Probes(model, fitted)
    if isinstance(fitted, Oracle):
        checks += _recorded(fitted, probes)
    checks.append(Slots.of(fitted).unpatched())
    known = not isinstance(fitted, Oracle) or fitted.recorded() is not None
    found, notes = behaviour(fitted, probes, known=known)
    return Diagnosis(prompt, checks + found, notes)


def find_verbalizer(given: str, settings: Mapping[str, Any]) -> Verbalizer:
    """Return the method that asks a verbalizer; nothing is loaded for it.

    Args:
        given: a convention's name; or what was trained: the folder or pinned Hub id of an oracle's adapter, the folder
            or file of a SelfIE adapter, or the folder of a natural-language autoencoder's verbalizer.
        settings: of the method, in place of those that are recorded.

    Raises:
        UsageError: it is none of these, an unknown setting, or one that cannot be.
    """
    kind, first = _kind_of(given)
    known = kind().parameters().keys() - {*first}
    for name in settings:
        if name not in known:
            raise unknown_name("setting of a verbalizer", name, known)
    method = kind(**{**first, **settings})
    if isinstance(method, NLA):
        method.metas()
    elif isinstance(method, SelfIEAdapter):
        method.soft_token()
    elif not (method.adapter and is_pinned(method.adapter)):
        method.recipe()  # the Hub's is fetched with the model's options
    return method


def _kind_of(given: str) -> tuple[type[Verbalizer], dict[str, Any]]:
    """Return the method that asks what was given, and how it is given to it."""
    path = Path(given).expanduser()
    if given in CONVENTIONS:
        return Oracle, {"convention": given}
    if (path / SIDECAR).is_file():
        return NLA, {"av": given}
    if path.is_file() or (path / SOFT_TOKEN).is_file():
        return SelfIEAdapter, {"adapter": given}
    if is_pinned(given) or path.is_dir():
        return Oracle, {"adapter": given}
    raise UsageError(
        f"--verbalizer {given}: neither one of {', '.join(CONVENTIONS)} nor a trained verbalizer, a folder or file"
    )


def _logits(model: LanguageModel) -> Tensor:
    ids = torch.tensor([model.tokens.encode("They say that the capital of Norway is").ids])
    return model.unembed(model.text_residuals(ids)[0])


@dataclass(frozen=True)
class Slots:
    """A prompt with its slots.

    Attributes:
        reader: the model that is asked.
        prompt: the prompt.
        layer: where activations are written.
    """

    reader: LanguageModel
    prompt: Prompt
    layer: int

    @classmethod
    def of(cls, method: Verbalizer) -> "Slots":
        """Return those of a fitted method, for one activation of each layer that it reads at once."""
        if isinstance(method, NLA):
            return cls(method.av_, method.prompt_, 0)
        recipe = method.recipe()
        return cls(method.verbalizer_, recipe.make(method.verbalizer_, QUESTION, recipe.usual), recipe.layer)

    def rendered(self) -> str:
        """Return the prompt as the model gets it, each slot marked."""
        words = [self.reader.tokens.tokenizer.decode([token]) for token in self.prompt.ids]
        for place in self.prompt.positions:
            words[place] = f"[[{words[place]}]]"
        return "".join(words)

    def checks(self) -> list[Check]:
        """Say where the slots are, and how they are written."""
        ids, places, decode = self.prompt.ids, self.prompt.positions, self.reader.tokens.tokenizer.decode
        found = [ids[place] for place in places]
        first, last = places[0], places[-1]
        around = f"{decode([ids[first - 1]])!r} before, {decode(list(ids[last + 1 : last + 2]))!r} after"
        in_a_row = len(places) > 1 and last - first == len(places) - 1
        where = f"{first}-{last}" if in_a_row else ", ".join(map(str, places))
        figure = f"tokens {where}, id {found[0]}; {around}"
        return [
            Check("slots", figure, "one id", len(set(found)) == 1),
            Check("written at layer", f"{self.layer}, {self.prompt.write}", "-", passed=True),
        ]

    def bos(self) -> Check:
        """Count the tokens of beginning: some templates mark every turn with the token that is BOS as well."""
        beginning = self.reader.tokens.tokenizer.bos_token_id
        count = next(i for i, token in enumerate(self.prompt.ids) if token != beginning)
        return Check("BOS at the beginning", str(count), "0 or 1", count <= 1)

    def unpatched(self) -> Check:
        """Check that to write nothing, or what is there already, gives the prompt's own scores."""
        reader, prompt, ids = self.reader, self.prompt, torch.tensor([self.prompt.ids])
        there = reader.residuals(ids, torch.ones_like(ids), torch.tensor([list(prompt.positions)]), (self.layer,))[0, 0]
        vectors = (torch.zeros_like(there) if prompt.write == "add" else there).flatten()[None]
        asked = range(0, reader.vocabulary, max(1, reader.vocabulary // 50))
        found = patcher_of(reader).score(prompt, vectors, torch.tensor([self.layer]), list(asked)).log_probs
        off = relative_deviation(found, reader.score_tokens(reader.text_residuals(ids)[0][-1:], list(asked)).log_probs)
        name = "a zero vector = question only" if prompt.write == "add" else "its own vector = question only"
        return Check(name, f"{off:.1e}", f"{reader.tolerance:.0e}", off <= reader.tolerance)


def _asked(model: LanguageModel, recipe: Recipe) -> tuple[str, list[Check]]:
    """Render a prompt with three activations of each layer, and check its slots and its BOS."""
    layers = recipe.usual if recipe.trained_at else (model.n_layers // 2,)
    try:
        three, four = (recipe.make(model, QUESTION, layers, count) for count in (3, 4))
    except LensbenchError as error:
        raise UsageError(f"the verbalizer cannot be asked: {error}") from None
    slots = Slots(model, three, recipe.layer)
    where, written = slots.checks()
    if recipe.run:  # written over whatever stands there
        where = replace(where, passed=True)
    # One activation more is one placeholder more for each layer, and nothing else: none has merged with its neighbour.
    grown, begun = list(three.ids), [place for place in three.positions if place - 1 not in three.positions]
    for first in reversed(begun):
        grown.insert(first + 1, three.ids[first + 1 if recipe.run else first])
    same = tuple(grown) == four.ids
    more = Check("one activation more is one token more", "yes" if same else "no", "yes", same)
    return slots.rendered(), [where, more, slots.bos(), written]


def _recorded(method: Oracle, probes: "Probes") -> list[Check]:
    """Compare what is asked with what the adapter's own files say of its training."""
    notes, recorded, used = read_notes(method.folder), method.recorded(), method.recipe()
    if recorded is None:
        return [Check("as recorded beside the adapter", "nothing is recorded", "-", passed=True)]
    parts = ("prompt", "layer", "write", "placeholder", "run", "together")
    other = [name for name in parts if getattr(used, name) != getattr(recorded, name)]
    checks = [Check("as recorded beside the adapter", ", ".join(other) or "the same", "the same", not other)]
    norms = notes.more.get("norms", {}) if notes else {}
    for layer in (layer for layer in probes.layers if str(layer) in norms):
        ratio = probes.norm(layer) / float(norms[str(layer)])
        checks.append(
            Check(
                f"length at layer {layer} / in training", f"{ratio:.2f}", f"{1 / NORM_FACTOR:g} to {NORM_FACTOR:g}",
                1 / NORM_FACTOR <= ratio <= NORM_FACTOR,
            )
        )  # fmt: skip
    return checks
