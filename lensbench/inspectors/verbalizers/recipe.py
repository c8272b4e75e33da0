"""Recipes: how a trained verbalizer is asked about activations, as it was trained to be."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.inspectors.evidence import Evidence
from lensbench.models.chat import Conversation, Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import WRITES, Prompt, Write, make_prompt
from lensbench.tasks.facts import SLOT
from lensbench.tasks.turns import Turn
from lensbench.utils.foreign import FOREIGN, read_text

# What stands for the subject in a question, where the activation stands before the question.
PHRASE = "this"
NOTES, AO_CONFIG = "lensbench.json", "ao_config.json"
# What lessons on prose ask: for the tokens after or before those shown, or for these and the ones before, in one text.
NEXT, PREVIOUS = f"Which {{k}} tokens come after {SLOT}?", f"Which {{k}} tokens come before {SLOT}?"
ENDING = f"Which {{k}} tokens end with {SLOT}?"
_QUESTION = re.compile(r"Question: (.*\?) Answer:.*")


def published_layers(depth: int) -> tuple[int, ...]:
    """Return the layers that the published oracles read of a model so deep: after the blocks at three shares of it."""
    return tuple(sorted({int(depth * share) + 1 for share in (0.25, 0.5, 0.75)}))


def constant_like(vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Return one and the same vector in place of each: what a verbalizer gets that is trained without activations."""
    return torch.ones_like(vectors)


def about_this(question: str) -> str:
    """Return a question about whatever the activation is of, which stands before it."""
    return question.replace(f"the {SLOT}", PHRASE).replace(SLOT, PHRASE)


def as_question(forms: Sequence[str]) -> str:
    """Return the first of a relation's forms that is a question, without its frame; else its inspection prompt."""
    return next((found[1] for form in forms if (found := _QUESTION.fullmatch(form))), forms[0])


@dataclass(frozen=True)
class Recipe:
    """How questions are put to a trained verbalizer.

    Attributes:
        prompt: a plain text, or the turns of a conversation under the verbalizer's chat template, the last of them the
            answer's; with the slots `{subject}` (the activation), `{layer}` and `{question}`. Without `{subject}`, the
            question keeps its own slot for the activation.
        layer: where activations are written.
        write: how they are written, see `lensbench.models.patching.Prompt`.
        placeholder: the word that an activation is written over; one token of the verbalizer.
        placeholders: how many of them a single activation fills; several activations fill one each.
        run: the slot is filled with one placeholder fewer than there are activations, which are written over as many
            tokens from the slot on, as LatentQA does.
        layers: those whose activations the verbalizer was trained to read one at a time.
        together: sets of layers that it was trained to read at once. If both are empty, the trained layers are unknown.
    """

    prompt: str | tuple[Turn, ...]
    layer: int
    write: Write
    placeholder: str = " ?"
    placeholders: int = 1
    run: bool = False
    layers: tuple[int, ...] = ()
    together: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Recipe":
        """Make a recipe of plain values, as JSON gives them.

        Raises:
            ValueError, TypeError, KeyError: they are none.
        """
        prompt = values["prompt"]
        turns = prompt if isinstance(prompt, str) else tuple((str(role), str(text)) for role, text in prompt)
        if values["write"] not in WRITES:
            raise ValueError(f"write is {values['write']!r}")
        layers = tuple(map(int, values.get("layers", ())))
        together = tuple(tuple(map(int, one)) for one in values.get("together", ()))
        return cls(**{**values, "prompt": turns, "layers": layers, "together": together})

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the prompt, one a turn."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(text for _, text in self.prompt)

    @property
    def takes_several(self) -> bool:
        """Whether the prompt has a place for several activations: where it has a slot of its own."""
        return any(SLOT in text for text in self.texts)

    @property
    def trained_at(self) -> tuple[int, ...]:
        """The layers at which the verbalizer was trained to answer: of those read at once, the deepest."""
        return tuple(sorted({*self.layers, *(max(one) for one in self.together)}))

    @property
    def usual(self) -> tuple[int, ...]:
        """The layers of a usual prompt: all that are read at once, or one in the middle."""
        if self.together:
            return max(self.together, key=len)
        # The published adapter of LatentQA reads the output of block 15.
        return (self.layers[len(self.layers) // 2],) if self.layers else (16,)

    def layers_read(self, layer: int) -> tuple[int, ...]:
        """Return the layers that are read to answer at a layer: the most that were read at once, and end there."""
        ending = [one for one in self.together if max(one) == layer]
        return max(ending, key=len) if ending else (layer,)

    def text(self, question: str, layers: Sequence[int], vectors: int = 1) -> Text:
        """Return the prompt for a question about activations, with slots for them.

        `{layer}` counts blocks from 0, as the published oracles do: layer 1 is the output of block 0, and -1 stands
        for the embeddings. For several layers, what comes before the question is there once for each.

        Args:
            question: with a slot for the subject.
            layers: where the activations were read.
            vectors: how many activations there are of each layer.
        """
        own = self.takes_several
        slots = 1 if self.run else self.placeholders if vectors == 1 else vectors

        def fill(text: str) -> str:
            before, asked, after = text.replace(SLOT, SLOT * slots).partition("{question}")
            each = layers if SLOT in before else layers[:1]
            lines = [before.replace("{layer}", str(layer - 1)) for layer in each]
            rest = (asked + after).replace("{layer}", str(layers[-1] - 1))
            return "".join(lines) + rest.replace("{question}", about_this(question) if own else question)

        if isinstance(self.prompt, str):
            return fill(self.prompt)
        return Conversation(tuple((role, fill(text)) for role, text in self.prompt))

    def make(self, model: LanguageModel, question: str, layers: Sequence[int], vectors: int = 1) -> Prompt:
        """Return the tokens of that prompt, and which of them are written over.

        Raises:
            LensbenchError: the placeholder is no token of its own, or the model's chat template is of no use.
        """
        if vectors > 1 and not self.takes_several:
            raise LensbenchError(
                f"prompt {' '.join(self.texts)!r} has a place for one activation, and sites of several tokens have "
                "more; put a slot {subject} into it, or give --sites without an extent"
            )
        text = self.text(question, layers, vectors)
        if len(layers) > 1 and (self.run or str(text).count(SLOT) < len(layers)):
            raise LensbenchError(
                f"prompt {' '.join(self.texts)!r} has no place for the activations of several layers; put a slot "
                "{subject} before its {question}, or read one layer at a time"
            )
        if self.run:
            return make_prompt(model, text, self.placeholder * (vectors - 1), self.write, run=vectors)
        return make_prompt(model, text, self.placeholder, self.write)

    def question(self, forms: Sequence[str]) -> str:
        """Return how a relation's question is put: in a conversation as a question, else as its inspection prompt."""
        return forms[0] if isinstance(self.prompt, str) else as_question(forms)


# All count the outputs of blocks from 0: what they write at block i is written at layer i + 1.
CONVENTIONS: dict[str, Recipe] = {
    "activation_oracle": Recipe(
        (("user", "Layer: {layer}\n" + SLOT + " \n{question}"), ("assistant", "")), layer=2, write="add"
    ),
    "latentqa": Recipe(
        (
            ("user", SLOT),
            ("reflect", "Sure, I've analyzed the assistant."),
            ("user", "{question}"),
            ("reflect", ""),
        ),
        layer=1, write="overwrite", placeholder="? ", run=True,
    ),
    "plain": Recipe("Layer: {layer}\n" + SLOT + " \n{question}", layer=2, write="add"),
}  # fmt: skip
"""The published recipes, Activation Oracles (Karvonen et al. 2025, arXiv 2512.15674) and LatentQA (Pan et al. 2024,
arXiv 2412.08686), and `plain`, the oracle's without roles, for models that have no chat template."""


@dataclass(frozen=True)
class Notes:
    """What is written beside an adapter that was trained here.

    Attributes:
        recipe: how it was trained to be asked.
        base: fingerprint of the model that it was trained in.
        dtype: that model's precision: in another one the same model has another fingerprint.
        answers: what it was trained to say, of all relations.
        more: relations, settings, figures, versions: what a reader wants to know.
    """

    recipe: Recipe
    base: str
    dtype: str
    answers: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    def check(self, adapter: str | None, verbalizer: LanguageModel) -> None:
        """Check that an adapter was trained in the verbalizer, as far as its precision lets that be told.

        Raises:
            UsageError: it was trained in another model.
        """
        if self.dtype == str(verbalizer.dtype) and self.base != verbalizer.fingerprint:
            raise UsageError(
                f"adapter {adapter} was trained on another model than {verbalizer.name} (fingerprint {self.base}, "
                f"here {verbalizer.fingerprint}): give that one as --verbalizer, or train one for this"
            )

    def write(self, folder: Path) -> None:
        """Write them into a folder, and what others' programs read of them into `ao_config.json`."""
        (folder / NOTES).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")
        write_ao_config(folder, self.recipe)


def read_notes(folder: Path) -> Notes | None:
    """Return the notes of an adapter; None for one that somebody else has trained.

    Raises:
        UsageError: notes that `lensbench fit` has not written.
    """
    path = folder / NOTES
    if not path.is_file():
        return None
    try:
        found = json.loads(read_text(path))
        recipe = Recipe.read(found.pop("recipe"))
        return Notes(recipe, answers=tuple(found.pop("answers")), **found)
    except FOREIGN as error:
        raise UsageError(f"{path} is not what lensbench fit writes ({error}); get the adapter again") from None


def require_trained(
    name: str, taught: Collection[str], layers: Collection[int], evidence: Evidence, *, any_layer: bool
) -> None:
    """Refuse what a trained verbalizer has no part in a comparison with.

    Args:
        name: of the method.
        taught: what it was trained to say.
        layers: those that it was trained to read; none where that is not known.
        evidence: what is asked.
        any_layer: read other layers, too.

    Raises:
        NotApplicableError: it was trained to say most of these answers, or not to read these layers.
    """
    known = set(taught) & set(evidence.answers)
    if 2 * len(known) > len(evidence.answers):
        raise NotApplicableError(
            f"the adapter was trained on labels: {len(known)} of the {len(evidence.answers)} answers are among them"
        )
    # At layer 0 it is asked for a baseline: what it makes of the bare token.
    others = [layer for layer in evidence.layers if layer and layers and layer not in layers]
    if others and not any_layer:
        every = ",".join(map(str, layers))
        raise NotApplicableError(
            f"the adapter was trained to read layers {every}, not {others[0]}: give --layers {every}, or --set "
            f"{name}.any_layer=true"
        )


# How `ao_config.json` writes the place of the activations, and the ends of its lines.
_PLACES, _LINE_END = "{special_token} * {num_positions}", "\\n"


def read_ao_config(folder: Path) -> Recipe | None:
    """Return the recipe in the `ao_config.json` that programs for Activation Oracles write; None without the file.

    Raises:
        UsageError: a file that says something else, or an oracle of a kind that is not run here.
    """
    path = folder / AO_CONFIG
    if not path.is_file():
        return None
    try:
        found = json.loads(read_text(path))
        template = str(found["prefix_template"]).replace(_LINE_END, "\n")
        read = {tuple(int(block) + 1 for block in blocks) for blocks in found.get("act_layer_combinations") or []}
        coefficient, write_at = float(found.get("steering_coefficient", 1.0)), int(found["hook_onto_layer"])
        alone = tuple(sorted(layer for (layer,) in (one for one in read if len(one) == 1)))
        together = tuple(sorted(one for one in read if len(one) != 1))
    except FOREIGN as error:
        raise UsageError(f"{path} is no configuration of an Activation Oracle ({error!r}); get it again") from None
    if _PLACES not in template or () in together or coefficient != 1:
        why = (
            "one of its act_layer_combinations is empty" if () in together
            else f"its steering_coefficient is {coefficient:g}, where the published recipe has 1" if coefficient != 1
            else f"its prefix_template has no {_PLACES}"
        )  # fmt: skip
        raise UsageError(f"{path}: {why}; such oracles are not run here, give the recipe with --set or another adapter")
    turns = (("user", template.replace(_PLACES, SLOT) + "{question}"), ("assistant", ""))
    placeholder = str(found.get("special_token", " ?"))
    return Recipe(turns, write_at + 1, "add", placeholder, layers=alone, together=together)


def write_ao_config(folder: Path, recipe: Recipe) -> None:
    """Write what programs for Activation Oracles read; nothing for a recipe of another kind."""
    if isinstance(recipe.prompt, str) or recipe.write != "add" or recipe.run:
        return
    (_, text), *_ = recipe.prompt
    config = {
        "schema_version": 1,
        "special_token": recipe.placeholder,
        "prefix_template": text.removesuffix("{question}").replace(SLOT, _PLACES).replace("\n", _LINE_END),
        "hook_onto_layer": recipe.layer - 1,
        "act_layer_combinations": [
            [layer - 1 for layer in layers] for layers in (*((layer,) for layer in recipe.layers), *recipe.together)
        ],
        "steering_coefficient": 1.0,
    }
    (folder / AO_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
