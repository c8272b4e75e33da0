"""Activation oracle: a verbalizer that was trained to read activations."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lensbench.errors import NotApplicableError, UsageError, unknown_name
from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.adapters import WEIGHTS, adapted, check_base, read_adapter
from lensbench.models.hub import hub_folder, is_pinned
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import WRITES, Write, make_prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.prompting import first_line
from lensbench.models.sources import ADAPTER
from lensbench.tasks.facts import SLOT
from lensbench.utils.foreign import FOREIGN, read_text

# What stands for the subject in a question, where the activation stands before the question.
PHRASE = "this"
NOTES = "lensbench.json"


@dataclass(frozen=True)
class Recipe:
    """How questions are put to a trained verbalizer.

    Attributes:
        prompt: with the slots `{subject}` (the activation), `{layer}` and `{question}`. Without `{subject}`, the
            question keeps its own slot for the activation.
        layer: where the activation is written.
        write: how it is written, see `lensbench.models.patching.Prompt`.
        placeholder: the word that the activation is written over; one token of the verbalizer.
        placeholders: how many of them, all with the same activation.
    """

    prompt: str
    layer: int
    write: Write
    placeholder: str = " ?"
    placeholders: int = 1

    def text(self, question: str, layer: int) -> str:
        """Return the prompt for a question about an activation of a layer, with slots for the activation.

        `{layer}` counts blocks from 0, as the published oracles do: layer 1 is the output of block 0, and -1 stands
        for the embeddings.
        """
        asked = question.replace(SLOT, PHRASE) if SLOT in self.prompt else question
        slots = self.prompt.replace(SLOT, SLOT * self.placeholders).replace("{layer}", str(layer - 1))
        return slots.replace("{question}", asked)


# Both count the outputs of blocks from 0: what they write at block i is written at layer i + 1.
CONVENTIONS: dict[str, Recipe] = {
    "oracle": Recipe("Layer: {layer}\n" + SLOT + " \n{question}", layer=2, write="add"),
    "latentqa": Recipe("An activation:" + SLOT + "\n{question}", layer=1, write="overwrite"),
}


@dataclass(frozen=True)
class Notes:
    """What `lensbench fit oracle` writes beside an adapter.

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

    def write(self, folder: Path) -> None:
        """Write them into a folder."""
        (folder / NOTES).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


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
        if found["recipe"]["write"] not in WRITES:
            raise ValueError(f"write is {found['recipe']['write']!r}")
        recipe = Recipe(**found.pop("recipe"))
        return Notes(recipe, answers=tuple(found.pop("answers")), **found)
    except FOREIGN as error:
        raise UsageError(f"{path} is not what lensbench fit writes ({error}); get the adapter again") from None


class Oracle(Inspector):
    """A verbalizer with a LoRA adapter that was trained to answer questions about activations.

    Activation Oracles (Karvonen et al. 2025, arXiv 2512.15674): after `Layer: L` and placeholders, the output of
    block 1 becomes h + |h| v / |v| at the placeholders. LatentQA (Pan et al. 2024, arXiv 2412.08686): the output of
    block 0 becomes v. What follows is the question; the next token is the answer.

    It learns nothing here. It was trained elsewhere, on other relations, so its rivals get no labels either; but they
    ask the adapted verbalizer too, in text and with the placeholder as it is. A relation most of whose answers it was
    trained to say is refused: no rival had those labels.

    Args:
        adapter: a folder with a LoRA adapter of PEFT, or `hub:ORG/NAME@COMMIT`; `lensbench fit oracle` trains one.
        convention: `oracle` or `latentqa`, for an adapter that somebody else has trained; by default `oracle`.
        prompt: in place of the one that adapter or convention has; see `Recipe`.
        layer: the layer to write at, likewise.
        write: `add`, `overwrite` or `norm_matched`, likewise.
        placeholder: likewise.
        placeholders: likewise.
    """

    name: ClassVar[str] = "oracle"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    cost: ClassVar[str] = "a patched pass an item and layer, in a copy of the verbalizer; trained before"
    generates: ClassVar[bool] = True

    def __init__(
        self,
        adapter: str | None = None,
        convention: str | None = None,
        prompt: str | None = None,
        layer: int | None = None,
        write: str | None = None,
        placeholder: str | None = None,
        placeholders: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.convention = convention
        self.prompt = prompt
        self.layer = layer
        self.write = write
        self.placeholder = placeholder
        self.placeholders = placeholders

    @property
    def _folder(self) -> Path:
        if self.adapter is None:
            raise UsageError(
                "oracle.adapter is missing: give the folder of a trained verbalizer, --set oracle.adapter=FOLDER; "
                "`lensbench fit oracle --out FOLDER` trains one"
            )
        return self._fetched() if is_pinned(self.adapter) else Path(self.adapter).expanduser()

    def _fetched(self, *, offline: bool = False) -> Path:
        return hub_folder(str(self.adapter), ((ADAPTER, WEIGHTS),), (NOTES,), offline=offline)

    def recipe(self) -> Recipe:
        """Return how the adapter is asked: what was given, else what it was trained with, else the convention.

        Raises:
            UsageError: an unknown convention or way to write, or a convention for an adapter that says its own.
        """
        notes = read_notes(self._folder)
        if self.convention is not None and self.convention not in CONVENTIONS:
            raise unknown_name("oracle.convention", self.convention, CONVENTIONS)
        if self.convention is not None and notes is not None:
            raise UsageError(f"oracle.convention: {self.adapter} records how it was trained; leave it out")
        if self.write is not None and self.write not in WRITES:
            raise unknown_name("oracle.write", self.write, WRITES)
        recipe = notes.recipe if notes else CONVENTIONS[self.convention or "oracle"]
        given = {one.name: getattr(self, one.name) for one in fields(Recipe)}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the adapter's files against the verbalizer, and how it is to be asked.

        Raises:
            UsageError: what does not fit, and what to choose instead.
        """
        if self.adapter is not None and is_pinned(self.adapter):
            self._fetched(offline=verbalizer.offline)  # once: later it is there
        check_base(read_adapter(self._folder), verbalizer.module, verbalizer.name)
        recipe, notes = self.recipe(), read_notes(self._folder)
        if recipe.layer not in range(verbalizer.n_layers + 1):
            raise UsageError(f"oracle.layer = {recipe.layer}; {verbalizer.name} has layers 0 to {verbalizer.n_layers}")
        if not isinstance(recipe.placeholders, int) or recipe.placeholders < 1:
            raise UsageError(f"oracle.placeholders = {recipe.placeholders!r}: expected 1 or more")
        if "{question}" not in recipe.prompt:
            raise UsageError(f"oracle.prompt = {recipe.prompt!r}: expected a text with the slot {{question}}")
        if target.d_model != verbalizer.d_model:
            raise UsageError(
                f"oracle: {target.name} has width {target.d_model}, verbalizer {verbalizer.name} {verbalizer.d_model}; "
                "choose a verbalizer of the same width"
            )
        if notes and notes.dtype == str(verbalizer.dtype) and notes.base != verbalizer.fingerprint:
            raise UsageError(
                f"adapter {self.adapter} was trained on another model than {verbalizer.name} (fingerprint "
                f"{notes.base}, here {verbalizer.fingerprint}): give that one as --verbalizer, or train one for this"
            )

    def files(self) -> tuple[Path, ...]:
        """Return the adapter's files; one of the Hub is known by its name, which says its commit."""
        if self.adapter is not None and is_pinned(self.adapter):
            return ()
        every = [self._folder / name for name in (ADAPTER, WEIGHTS, NOTES)]
        return tuple(file for file in every if file.is_file())

    def reader(self, verbalizer: LanguageModel) -> LanguageModel:
        """Return the adapted verbalizer, which the method's baselines ask too."""
        return adapted(verbalizer, read_adapter(self._folder))

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the prompt for a question, with the number of a middle layer: baselines read no layer."""
        recipe = self.recipe()
        return OwnPrompt(recipe.text(question, self._middle()), recipe.placeholder)

    def _middle(self) -> int:
        notes = read_notes(self._folder)
        layers = sorted(notes.more.get("read_layers", ())) if notes else []
        # The published adapter of LatentQA reads the output of block 15.
        return int(layers[len(layers) // 2]) if layers else 16

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Oracle":
        """Load the adapter into a copy of the verbalizer."""
        self.verbalizer_ = self.reader(verbalizer)
        self.recipe_ = self.recipe()
        notes = read_notes(self._folder)
        self.answers_ = frozenset(notes.answers) if notes else frozenset()
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Write every layer's residual of every item into the prompt for the question, and score the next token.

        Raises:
            NotApplicableError: the adapter was trained to say most of these answers.
        """
        known = self.answers_ & set(evidence.answers)
        if 2 * len(known) > len(evidence.answers):
            raise NotApplicableError(
                f"the adapter was trained on labels: {len(known)} of the {len(evidence.answers)} answers are among them"
            )
        values, answers = evidence.residuals.values, evidence.answers
        dtype = torch.promote_types(self.verbalizer_.dtype, torch.float32)
        log_probs = torch.empty(*values.shape[:2], len(answers), dtype=dtype)
        ranks = torch.empty(log_probs.shape, dtype=torch.long)
        texts = np.empty((len(values), 1, values.shape[1]), dtype=object) if evidence.describe else None
        tokens = [self.verbalizer_.tokens.answer_token(answer) for answer in answers]
        patcher = patcher_of(self.verbalizer_)
        for text, places in self._prompts(evidence.question, evidence.layers).items():
            prompt = make_prompt(self.verbalizer_, text, self.recipe_.placeholder, self.recipe_.write)
            vectors, shape = values[places].flatten(0, 1), (len(places), values.shape[1], -1)
            at = torch.full((len(vectors),), self.recipe_.layer)
            scores = patcher.score(prompt, vectors, at, tokens)
            log_probs[places] = scores.log_probs.reshape(shape).to(log_probs)
            ranks[places] = scores.ranks.reshape(shape).cpu()
            if texts is not None:
                said = [first_line(one) for one in patcher.generate(prompt, vectors, at, evidence.describe)]
                texts[places] = np.array(said, dtype=object).reshape(len(places), 1, -1)
        return Scores(("default",), log_probs[:, None], ranks[:, None], texts)

    def _prompts(self, question: str, layers: tuple[int, ...]) -> dict[str, list[int]]:
        """Return the prompts, and the places of the layers that each is for: one, where it gives the layer's number."""
        prompts: dict[str, list[int]] = {}
        for place, layer in enumerate(layers):
            prompts.setdefault(self.recipe_.text(question, layer), []).append(place)
        return prompts
