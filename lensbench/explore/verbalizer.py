"""The doctor of trained verbalizers: is it asked as it was trained to be, and does it read what it is given?"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.explore.doctor import Check
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS, Recipe, published_layers, read_notes
from lensbench.models.activations import Residuals, capture, find_site
from lensbench.models.hub import is_pinned
from lensbench.models.language_model import LanguageModel, relative_deviation
from lensbench.models.patching.passes import Prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.tasks import Item, Relation, load_task

QUESTION = "What is the capital of {subject}?"
# Probes: so many subjects of each of these relations, whose answers small models know best.
TASK, RELATIONS, SUBJECTS = "attribute_extraction", ("country_language", "city_country"), 10
# Activations may be so many times longer or shorter than those of training.
NORM_FACTOR = 2.0
# A difference is taken for real beyond so many standard errors of its mean over probes.
ERRORS = 2.0

Vectors = Float[Tensor, "item d_model"]


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
    """Check how a verbalizer is asked; and, of an adapter, whether it reads activations.

    Args:
        model: the base model, which is the target as well.
        given: a convention's name, or an adapter: its folder or pinned Hub id.
        settings: of `Oracle`, in place of those of adapter or convention.

    Raises:
        UsageError: neither a convention nor an adapter, or one that does not fit the model.
    """
    method = find_verbalizer(given, settings)
    if method.adapter is None:
        return Diagnosis(*_asked(model, method.recipe()), [])
    before = _logits(model)
    method.check(Target(model), model)
    prompt, checks = _asked(model, method.recipe())
    reader = method.reader(model)
    off = relative_deviation(_logits(model), before)
    checks.append(Check("adapter off = base", f"{off:.1e}", "0", off == 0))
    probes = Probes(model, method.recipe())
    checks += [*_recorded(method, probes), *_unpatched(reader, method.recipe())]
    found, notes = _behaviour(reader, method.recipe(), probes, known=method.recorded() is not None)
    return Diagnosis(prompt, checks + found, notes)


def find_verbalizer(given: str, settings: Mapping[str, Any]) -> Oracle:
    """Return the method that asks a verbalizer; nothing is loaded for it.

    Args:
        given: a convention's name, or an adapter: its folder or pinned Hub id.
        settings: of `Oracle`, in place of those of adapter or convention.

    Raises:
        UsageError: neither a convention nor an adapter, an unknown setting, or one that cannot be.
    """
    known = Oracle().parameters().keys() - {"adapter"}
    for name in settings:
        if name not in known:
            raise unknown_name("setting of a verbalizer", name, known)
    if given in CONVENTIONS:
        method = Oracle(**{**settings, "convention": given})
    elif is_pinned(given) or Path(given).expanduser().is_dir():
        method = Oracle(given, **settings)
    else:
        raise UsageError(f"--verbalizer {given}: neither one of {', '.join(CONVENTIONS)} nor the folder of an adapter")
    if method.adapter is None or not is_pinned(method.adapter):  # the Hub's is fetched with the model's options
        method.recipe()
    return method


def _logits(model: LanguageModel) -> Tensor:
    ids = torch.tensor([model.tokens.encode("They say that the capital of Norway is").ids])
    return model.unembed(model.text_residuals(ids)[0])


def _asked(model: LanguageModel, recipe: Recipe) -> tuple[str, list[Check]]:
    """Render a prompt with three activations, and check its slots and its BOS."""
    layer = recipe.layers[0] if recipe.layers else model.n_layers // 2
    try:
        three, four = (recipe.make(model, QUESTION, (layer,), count) for count in (3, 4))
    except LensbenchError as error:
        raise UsageError(f"the verbalizer cannot be asked: {error}") from None
    words = [model.tokens.tokenizer.decode([token]) for token in three.ids]
    for place in three.positions:
        words[place] = f"[[{words[place]}]]"
    first, last = three.positions[0], three.positions[-1]
    around = f"{words[first - 1]!r} before, {''.join(words[last + 1 : last + 2])!r} after"
    slots = [three.ids[place] for place in three.positions]
    # One activation more is one placeholder more, and nothing else: no token has merged with its neighbour.
    grown = (*three.ids[: first + 1], three.ids[first + 1 if recipe.run else first], *three.ids[first + 1 :])
    alike = len(set(slots)) == 1 or recipe.run
    # Some templates mark every turn with the token that is BOS as well.
    beginning = model.tokens.tokenizer.bos_token_id
    count = next(i for i, token in enumerate(three.ids) if token != beginning)
    return "".join(words), [
        Check("slots", f"tokens {first}-{last}, id {slots[0]}; {around}", "one id", alike),
        Check("one activation more is one token more", "yes" if grown == four.ids else "no", "yes", grown == four.ids),
        Check("BOS at the beginning", str(count), "0 or 1", count <= 1),
        Check("written at layer", f"{recipe.layer}, {recipe.write}", "-", passed=True),
    ]


def _recorded(method: Oracle, probes: "Probes") -> list[Check]:
    """Compare what is asked with what the adapter's own files say of its training."""
    notes, recorded, used = read_notes(method.folder), method.recorded(), method.recipe()
    if recorded is None:
        return [Check("as recorded beside the adapter", "nothing is recorded", "-", passed=True)]
    parts = ("prompt", "layer", "write", "placeholder", "run")
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


def _unpatched(reader: LanguageModel, recipe: Recipe) -> list[Check]:
    """Check that to write nothing, or what is there already, gives the prompt's own scores."""
    prompt = recipe.make(reader, QUESTION, (recipe.layer,))
    ids = torch.tensor([prompt.ids])
    where = torch.tensor([list(prompt.positions)])
    there = reader.residuals(ids, torch.ones_like(ids), where, (recipe.layer,))[0, 0]
    vectors = (torch.zeros_like(there) if recipe.write == "add" else there).flatten()[None]
    asked = reader.tokens.telling_ids(("Oslo", "Paris"), recipe.text(QUESTION, (recipe.layer,)))
    at = torch.tensor([recipe.layer])
    found = patcher_of(reader).score_answers(prompt, vectors, at, [ids[:1] for ids in asked]).log_probs
    last = reader.text_residuals(ids)[0][-1:]
    expected = reader.score_tokens(last, [ids[0] for ids in asked]).log_probs
    off = relative_deviation(found, expected)
    name = "a zero vector = question only" if recipe.write == "add" else "its own vector = question only"
    return [Check(name, f"{off:.1e}", f"{reader.tolerance:.0e}", off <= reader.tolerance)]


class Probes:
    """Subjects whose attributes a verbalizer is asked about, and their activations.

    Args:
        model: the target.
        recipe: whose layers are read; where it names none, a quarter, half and three quarters of the depth.
    """

    def __init__(self, model: LanguageModel, recipe: Recipe) -> None:
        every = model.n_layers
        self.layers = recipe.layers or published_layers(every)
        task = load_task(TASK)
        self.groups: list[tuple[Relation, list[Item], Residuals]] = []
        for name in RELATIONS:
            own = [item for item in task.items("subject", "test") if item.relation == name]
            items = list({item.subject: item for item in own}.values())[:SUBJECTS]
            near = sorted({max(0, min(every, layer + off)) for layer in self.layers for off in (-1, 0, 1)})
            self.groups.append(
                (task.relations[name], items, capture(model, [find_site(model, i) for i in items], near))
            )

    def norm(self, layer: int) -> float:
        """Return the mean length of the activations of a layer."""
        values = torch.cat([read.at_layers((layer,)).values[0] for *_, read in self.groups])
        return float(values.float().norm(dim=-1).mean())

    def scores(
        self,
        reader: LanguageModel,
        recipe: Recipe,
        change: Callable[[Vectors], Vectors] = lambda vectors: vectors,
        shift: int = 0,
        layer: int = 0,
    ) -> Float[Tensor, " probe"]:
        """Return the log-probability of each right answer among its choices, one a layer and subject.

        Args:
            reader: the adapted verbalizer.
            recipe: how it is asked.
            change: what is done to the activations of a relation's subjects.
            shift: read this many layers further on than the prompt says.
            layer: write this many layers further on.
        """
        found = []
        at = max(0, min(reader.n_layers, recipe.layer + layer))
        for relation, items, read in self.groups:
            question = recipe.question((*relation.inspection, *relation.questions))
            answers = sorted({choice for item in items for choice in item.choices})
            asked = reader.tokens.telling_ids(answers, recipe.text(question, (1,)))
            for number in self.layers:
                own = max(0, min(reader.n_layers, number + shift))
                vectors = change(read.at_layers((own,)).values[0])
                prompt: Prompt = recipe.make(reader, question, (number,))
                scored = patcher_of(reader).score_answers(prompt, vectors, torch.full((len(items),), at), asked)
                for item, row in zip(items, scored.log_probs.float().cpu(), strict=True):
                    choices = [answers.index(choice) for choice in item.choices]
                    found.append(row[answers.index(item.answer)] - row[choices].logsumexp(0))
        return torch.stack(found)


# Other vectors, by name, and what it means where a trained reader is no worse with them.
MEANINGS = {
    "another subject's vector": "it does not read these activations: the recipe is wrong, or it was not trained to",
    "a random vector of equal length": "it answers from the question alone",
    "read one layer earlier": "neighbouring layers say the same; or the layer's number is off by one",
    "read one layer later": "neighbouring layers say the same; or the layer's number is off by one",
    "written one layer earlier": "where it is written matters little; or the layer is off by one",
    "written one layer later": "where it is written matters little; or the layer is off by one",
    "length x 0.1": "this way of writing takes the length from what is there, so that lengths do not matter",
    "length x 10": "this way of writing takes the length from what is there, so that lengths do not matter",
}
# To read better than with these is what makes a reader. To read better with one of the others says that the recipe is
# wrong, unless it is recorded: neighbouring layers may happen to be more legible.
DECISIVE = ("another subject's vector", "a random vector of equal length")


def _behaviour(reader: LanguageModel, recipe: Recipe, probes: Probes, *, known: bool) -> tuple[list[Check], list[str]]:
    """Ask about known subjects as the recipe says, and with everything wrong in turn.

    Args:
        reader: the adapted verbalizer.
        recipe: how it is asked.
        probes: what it is asked about.
        known: whether the adapter records its recipe.
    """
    real = probes.scores(reader, recipe)
    checks = [Check("log p of the right answer among its choices", f"{real.mean():.2f}", "-", passed=True)]
    notes = []
    for name, other in _variants(reader, recipe, probes):
        lower, error = compared(real, other)
        better = lower < -ERRORS * error
        passed = lower > ERRORS * error if name in DECISIVE else known or not better
        checks.append(Check(name, f"{other.mean():.2f}", "lower", passed))
        if lower <= ERRORS * error:
            notes.append(f"{name}: {'it reads better so' if better else 'no lower'}: {MEANINGS[name]}")
    return checks, notes


def _variants(reader: LanguageModel, recipe: Recipe, probes: Probes) -> Iterator[tuple[str, Tensor]]:
    def noise(vectors: Tensor) -> Tensor:
        drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).to(vectors)
        lengths: Tensor = vectors.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        return drawn * lengths

    yield "another subject's vector", probes.scores(reader, recipe, lambda vectors: vectors.roll(1, 0))
    yield "a random vector of equal length", probes.scores(reader, recipe, noise)
    yield "read one layer earlier", probes.scores(reader, recipe, shift=-1)
    yield "read one layer later", probes.scores(reader, recipe, shift=1)
    yield "written one layer earlier", probes.scores(reader, recipe, layer=-1)
    yield "written one layer later", probes.scores(reader, recipe, layer=1)
    yield "length x 0.1", probes.scores(reader, recipe, lambda vectors: vectors * 0.1)
    yield "length x 10", probes.scores(reader, recipe, lambda vectors: vectors * 10)


def compared(real: Float[Tensor, " probe"], other: Float[Tensor, " probe"]) -> tuple[float, float]:
    """Return by how much scores are lower than others on average, and the standard error of that."""
    lower = (real - other).double()
    return float(lower.mean()), float(lower.std()) / math.sqrt(len(lower))
