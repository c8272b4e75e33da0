"""Activation oracle: a verbalizer that was trained to read activations."""

from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.inspectors.base import Inspector, OwnPrompt, Part
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.patchscopes.patched import ask_patched
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.heard import Heard
from lensbench.inspectors.verbalizers.recipe import (
    AO_CONFIG,
    CONVENTIONS,
    NOTES,
    Notes,
    Recipe,
    constant_like,
    read_ao_config,
    read_notes,
    require_trained,
)
from lensbench.models.adapters import WEIGHTS, adapted, check_base, read_adapter
from lensbench.models.hub import hub_folder, is_pinned
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import WRITES, Prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.sources import ADAPTER
from lensbench.tasks.free_text import first_answer
from lensbench.utils.layer_spec import layer_numbers

# Answers are short: a word or two.
SAMPLED_TOKENS = 8


class Oracle(Inspector):
    """A verbalizer with a LoRA adapter that was trained to answer questions about activations.

    Activation Oracles (Karvonen et al. 2025, arXiv 2512.15674): in a user's turn, after `Layer: L` and one placeholder
    for each vector, the output of block 1 becomes h + |h| v / |v| at the placeholders; the question follows, and the
    assistant's turn begins with the answer. LatentQA (Pan et al. 2024, arXiv 2412.08686): the first user's turn is
    placeholders alone, where the output of block 0 becomes v. Where sites have several tokens, all their vectors are
    read.

    It learns nothing here. It was trained elsewhere, on other relations, so its rivals get no labels either; but they
    ask the adapted verbalizer too, in text and with the placeholder as it is. A relation most of whose answers it was
    trained to say is refused: no rival had those labels.

    Args:
        adapter: a folder with a LoRA adapter of PEFT, or `hub:ORG/NAME@COMMIT`; `lensbench fit oracle` trains one.
        convention: how an adapter is asked that does not say so itself: `activation_oracle` (the default), `latentqa`,
            or `plain`, which needs no chat template.
        prompt: a plain text in place of the prompt that adapter or convention has; see `Recipe`.
        layer: the layer to write at, likewise.
        write: `add`, `overwrite` or `norm_matched`, likewise.
        placeholder: likewise.
        placeholders: likewise.
        layers: those that it was trained to read, for an adapter that does not say so: `8,15,23`, a list.
        together: those that it was trained to read at once, likewise, all in one prompt. At each layer it reads the
            largest trained set whose deepest layer is that one. `false` has an adapter that was trained to do both read
            one layer at a time.
        any_layer: also read layers that it was not trained to read.
        constant: the folder of an adapter that was trained alike on one constant vector in place of every activation
            (`lensbench fit oracle --set constant=true`): the rival `learned_constant` asks it.
        samples: draw so many answers at temperature 1 as a second attempt: an answer's score is the share of them that
            name it first, and the share of the most frequent one is how sure the method is.
    """

    name: ClassVar[str] = "oracle"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    cost: ClassVar[str] = "a patched pass an item and layer, in a copy of the verbalizer; trained before"
    generates: ClassVar[bool] = True
    tries: ClassVar[str] = "one, or two where answers are sampled"
    trained: ClassVar[bool] = True
    default_convention: ClassVar[str] = "activation_oracle"
    _without: Part | None = None

    def __init__(
        self,
        adapter: str | None = None,
        convention: str | None = None,
        prompt: str | None = None,
        layer: int | None = None,
        write: str | None = None,
        placeholder: str | None = None,
        placeholders: int | None = None,
        layers: tuple[int, ...] | str | int | None = None,
        together: tuple[int, ...] | str | int | bool | None = None,
        any_layer: bool = False,
        constant: str | None = None,
        samples: int = 0,
    ) -> None:
        self.adapter = adapter
        self.convention = convention
        self.prompt = prompt
        self.layer = layer
        self.write = write
        self.placeholder = placeholder
        self.placeholders = placeholders
        self.layers = layers if layers is None or isinstance(layers, str | int) else tuple(layers)
        self.together = together if together is None or isinstance(together, str | int) else tuple(together)
        self.any_layer = any_layer
        self.constant = constant
        self.samples = samples

    @property
    def folder(self) -> Path:
        """The adapter's folder.

        Raises:
            UsageError: none was given.
        """
        if self.adapter is None:
            raise UsageError(
                f"{self.name}.adapter is missing: give the folder of a trained verbalizer, --set "
                f"{self.name}.adapter=FOLDER; `lensbench fit oracle --out FOLDER` trains one"
            )
        return self._fetched() if is_pinned(self.adapter) else Path(self.adapter).expanduser()

    def _fetched(self, *, offline: bool = False) -> Path:
        return hub_folder(str(self.adapter), ((ADAPTER, WEIGHTS),), (NOTES, AO_CONFIG), offline=offline)

    def recorded(self) -> Recipe | None:
        """Return how the adapter's own files say that it was trained to be asked; None where they do not, or for none.

        Raises:
            UsageError: a file that says something else.
        """
        if self.adapter is None:
            return None
        notes = read_notes(self.folder)
        return notes.recipe if notes else read_ao_config(self.folder)

    def recipe(self) -> Recipe:
        """Return how the adapter is asked: what was given, else what it was trained with, else the convention.

        Raises:
            UsageError: an unknown convention or way to write, layers that are no numbers, or a convention for an
                adapter that says its own.
        """
        written = self.recorded()
        if self.convention is not None and self.convention not in CONVENTIONS:
            raise unknown_name(f"{self.name}.convention", self.convention, CONVENTIONS)
        if self.convention is not None and written is not None:
            raise UsageError(f"{self.name}.convention: {self.adapter} records how it was trained; leave it out")
        if self.write is not None and self.write not in WRITES:
            raise unknown_name(f"{self.name}.write", self.write, WRITES)
        recipe = written or CONVENTIONS[self.convention or self.default_convention]
        given = {one.name: getattr(self, one.name, None) for one in fields(Recipe)}
        if self.layers is not None:
            given["layers"] = self._numbers("layers", self.layers)
        if self.together is False and recipe.together and not recipe.layers:
            raise UsageError(f"{self.name}.together = False: {self.adapter} was trained to read several layers at once")
        if self.together is not None:
            given["together"] = () if self.together is False else (self._numbers("together", self.together),)
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def _numbers(self, name: str, given: object) -> tuple[int, ...]:
        try:
            return layer_numbers(given)
        except ValueError as error:
            also = ", or false" if name == "together" else ""
            raise UsageError(f"{self.name}.{name} = {given!r}: {error}{also}") from None

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the adapter's files against the verbalizer, and how it is to be asked.

        Raises:
            UsageError: what does not fit, and what to choose instead.
        """
        if self.adapter is not None and is_pinned(self.adapter):
            self._fetched(offline=verbalizer.offline)  # once: later it is there
        check_base(read_adapter(self.folder), verbalizer.module, verbalizer.name)
        notes = read_notes(self.folder)
        self._check_recipe(self.recipe(), target, verbalizer)
        if target.d_model != verbalizer.d_model:
            raise UsageError(
                f"{self.name}: {target.name} has width {target.d_model}, verbalizer {verbalizer.name} "
                f"{verbalizer.d_model}; choose a verbalizer of the same width"
            )
        if notes:
            notes.check(self.adapter, verbalizer)
        self._check_constant(verbalizer, notes)

    def _check_recipe(self, recipe: Recipe, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse settings that cannot be, and layers that the models lack."""
        if recipe.layer not in range(verbalizer.n_layers + 1):
            raise UsageError(
                f"{self.name}.layer = {recipe.layer}; {verbalizer.name} has layers 0 to {verbalizer.n_layers}"
            )
        for name, layers in (("layers", recipe.layers), *(("together", one) for one in recipe.together)):
            if not set(layers) <= set(range(target.n_layers + 1)):
                raise UsageError(f"{self.name}.{name} = {layers}; {target.name} has layers 0 to {target.n_layers}")
        if not isinstance(self.samples, int) or self.samples < 0:
            raise UsageError(f"{self.name}.samples = {self.samples!r}: expected 0 or more")
        if not isinstance(recipe.placeholders, int) or recipe.placeholders < 1:
            raise UsageError(f"{self.name}.placeholders = {recipe.placeholders!r}: expected 1 or more")
        if recipe.placeholders > 1 and recipe.together:
            raise UsageError(f"{self.name}: several layers are read at once, one placeholder each; set no placeholders")
        if not any("{question}" in text for text in recipe.texts):
            raise UsageError(f"{self.name}.prompt = {recipe.prompt!r}: expected a text with the slot {{question}}")
        try:
            recipe.make(verbalizer, "What is {subject}?", recipe.usual, 2 if recipe.takes_several else 1)
        except LensbenchError as error:
            advice = (
                "set together=false"
                if recipe.together
                else f"give another recipe, such as {self.name}.convention=plain"
            )
            raise UsageError(f"{self.name}: {error}; {advice}") from None

    def _check_constant(self, verbalizer: LanguageModel, notes: Notes | None) -> None:
        """Refuse an adapter that never saw an activation as the method, and one that did as its constant rival."""
        if _constant(notes):
            raise UsageError(
                f"{self.name}.adapter {self.adapter} was trained on a constant vector; give one that was trained on "
                f"activations, and this as {self.name}.constant"
            )
        if self.constant is None:
            return
        other = Path(self.constant).expanduser()
        check_base(read_adapter(other), verbalizer.module, verbalizer.name)
        theirs = read_notes(other)
        if theirs is None or not _constant(theirs) or theirs.recipe != self.recorded():
            raise UsageError(
                f"{self.name}.constant {self.constant}: expected an adapter that was trained in the same recipe with "
                "`lensbench fit oracle --set constant=true`"
            )
        theirs.check(self.constant, verbalizer)

    def files(self) -> tuple[Path, ...]:
        """Return the adapter's files; one of the Hub is known by its name, which says its commit."""
        own = [] if self.adapter is not None and is_pinned(self.adapter) else [self.folder]
        folders = [*own, *([Path(self.constant).expanduser()] if self.constant else [])]
        every = [folder / name for folder in folders for name in (ADAPTER, WEIGHTS, NOTES, AO_CONFIG)]
        return tuple(file for file in every if file.is_file())

    def reader(self, verbalizer: LanguageModel) -> LanguageModel:
        """Return the adapted verbalizer, which the method's baselines ask too."""
        return verbalizer if self._without == "training" else adapted(verbalizer, read_adapter(self.folder))

    def without(self, part: Part) -> "Oracle | None":
        """Return the oracle in the plain verbalizer, or the one that was trained on a constant; None where none was."""
        if part == "activation" and self.constant is None:
            return None
        other = copy(self)
        other._without = part
        if part == "activation":
            other.adapter, other.constant = self.constant, None
        return other

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the prompt for a question, with the numbers of usual layers: baselines read no layer."""
        return self.own_prompts((question,))[0]

    def own_prompts(self, forms: tuple[str, ...]) -> tuple[OwnPrompt, ...]:
        """Return that prompt, for the form in which the adapter is asked."""
        recipe = self.recipe()
        return (OwnPrompt(recipe.text(recipe.question(forms), recipe.usual), recipe.placeholder),)

    def layers_read(self, layer: int) -> tuple[int, ...]:
        """Return the layers whose activations are in one prompt when it answers at a layer."""
        return (getattr(self, "recipe_", None) or self.recipe()).layers_read(layer)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Oracle":
        """Load the adapter into a copy of the verbalizer."""
        self.verbalizer_ = self.reader(verbalizer)
        self.recipe_ = self.recipe()
        notes = read_notes(self.folder)
        self.answers_ = frozenset(notes.answers) if notes else frozenset()
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Write every layer's vectors of every item into the prompt for the question, and score what comes next.

        Raises:
            NotApplicableError: the adapter was trained to say most of these answers, or not to read these layers.
        """
        require_trained(self.name, self.answers_, self.recipe_.trained_at, evidence, any_layer=self.any_layer)
        question, heard = self.recipe_.question(evidence.forms), Heard(evidence)
        for count, (items, values) in evidence.residuals.by_count().items():
            for places in self._alike(question, evidence.layers):
                read = [self.recipe_.layers_read(evidence.layers[place]) for place in places]
                there = torch.tensor([[evidence.residuals.layers.index(one) for one in layers] for layers in read])
                rows = values[there].transpose(1, 2).flatten(0, 1)
                shown = (constant_like(rows) if self._without == "activation" else rows).flatten(1)
                prompt = self.recipe_.make(self.verbalizer_, question, read[0], count)
                text = self.recipe_.text(question, read[0], count)
                at = torch.full((len(shown),), self.recipe_.layer)
                heard.keep(places, items, ask_patched(self.verbalizer_, prompt, text, shown, at, evidence))
                if self.samples:
                    heard.keep_shares(places, items, self._shares(prompt, shown, at, evidence.answers))
        return heard.scores(self.samples)

    def _shares(
        self, prompt: Prompt, rows: Tensor, at: Tensor, answers: tuple[str, ...]
    ) -> Float[Tensor, "row answer"]:
        """Return in which share of the samples each answer is named first."""
        shares = torch.zeros(len(rows), len(answers))
        for seed in range(self.samples):
            drawn = patcher_of(self.verbalizer_).generate(prompt, rows, at, SAMPLED_TOKENS, seed)
            named = [first_answer(text, answers) for text in drawn]
            shares += torch.tensor([[one == place for place in range(len(answers))] for one in named]) / self.samples
        return shares

    def _alike(self, question: str, layers: tuple[int, ...]) -> list[list[int]]:
        """Return the places of layers that are asked about in one and the same prompt: one, where it numbers them."""
        prompts: dict[object, list[int]] = {}
        for place, layer in enumerate(layers):
            prompts.setdefault(self.recipe_.text(question, self.recipe_.layers_read(layer)), []).append(place)
        return list(prompts.values())


def _constant(notes: Notes | None) -> bool:
    """Whether an adapter was trained on a constant vector."""
    return bool(notes and notes.more.get("settings", {}).get("constant"))
