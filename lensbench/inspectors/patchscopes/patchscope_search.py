"""A search over the configurations of a Patchscope."""

import itertools
import random
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lensbench.errors import LensbenchError, UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import make_prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.tasks.facts import SLOT
from lensbench.utils.layer_spec import parse_layers

NAME = re.compile(
    r"form=(?P<form>\d+) placeholder=(?P<placeholder>.+) target_layer=(?P<layer>\d+) amplifier=(?P<amplifier>.+)"
)


@dataclass(frozen=True)
class Configuration:
    """One way to set up a Patchscope: T, what stands in its slot, l*, and what the residual is multiplied with."""

    prompt: OwnPrompt
    form: int
    target_layer: int
    amplifier: float

    @property
    def name(self) -> AttemptName:
        """Its name in the records; forms are numbered in the order of the relation's."""
        prompt, amplifier = f"form={self.form} placeholder={self.prompt.placeholder}", f"amplifier={self.amplifier:g}"
        name = f"{prompt} target_layer={self.target_layer} {amplifier}"
        return AttemptName(name, self.target_layer, f"{prompt} {amplifier}")

    def settings(self) -> dict[str, str | int | float]:
        """Return it as it is set elsewhere."""
        own = {"prompt": str(self.prompt.text), "placeholder": self.prompt.placeholder}
        return {**own, "target_layer": self.target_layer, "amplifier": self.amplifier}


class PatchscopeSearch(Inspector):
    """Patchscopes of many configurations, one attempt each: the question that the Patchscopes explorable leaves open.

    Inspection prompt, placeholder, target layer and amplifier are drawn at random, without repetition, from all
    combinations; the first is the plain Patchscope of the relation's inspection prompt at target layer 1. Under the
    rule `selected` the attempt is chosen at each layer on the other folds, and so is every rival's own, among the same
    configurations: what is searched for is searched for on both sides. `lensbench tune patchscope` runs it.

    Ghandeharioun et al. 2024, arXiv 2401.06102; amplifiers as in Superscopes, arXiv 2503.02078.

    Args:
        budget: how many configurations.
        prompts: texts with the slot `{subject}`, besides the relation's inspection prompts and question forms.
        placeholders: words of one token each.
        target_layers: `all`, numbers such as `0,4,8`, or `stride:2`.
        amplifiers: factors.
        seed: of the draw.
    """

    name: ClassVar[str] = "patchscope_search"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a configuration"
    rule: ClassVar[Literal["fixed", "selected"]] = "selected"
    cost: ClassVar[str] = "a patched pass an item, layer and configuration"

    def __init__(
        self,
        budget: int = 32,
        prompts: tuple[str, ...] = (),
        placeholders: tuple[str, ...] = ("x", "it", "?"),
        target_layers: str = "all",
        amplifiers: tuple[float, ...] = (1.0, 3.0),
        seed: int = 0,
    ) -> None:
        self.budget = budget
        self.prompts = tuple(prompts)
        self.placeholders = tuple(placeholders)
        self.target_layers = target_layers
        self.amplifiers = tuple(amplifiers)
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the space that is searched.

        Raises:
            UsageError: a budget below 1, an empty list, a prompt without its slot, a placeholder of several tokens, a
                layer that the verbalizer lacks, or a verbalizer of another width.
        """
        if self.budget < 1 or not self.placeholders or not self.amplifiers:
            raise UsageError(
                f"{self.name}: budget = {self.budget}, placeholders = {self.placeholders}, amplifiers = "
                f"{self.amplifiers}; expected 1 or more, and no empty list"
            )
        for prompt in self.prompts:
            if prompt.count(SLOT) != 1:
                raise UsageError(f"{self.name}: prompt {prompt!r} needs one {SLOT} slot, where the activation goes")
        for placeholder in self.placeholders:
            make_prompt(verbalizer, f"They know {SLOT} well", placeholder)
        parse_layers(self.target_layers, verbalizer.n_layers, f"{self.name}: target_layers")
        if target.d_model != verbalizer.d_model:
            raise UsageError(
                f"{self.name}: {target.name} has width {target.d_model}, verbalizer {verbalizer.name} "
                f"{verbalizer.d_model}; choose a verbalizer of the same width"
            )

    def configurations(self, forms: tuple[str, ...], deepest: int) -> tuple[Configuration, ...]:
        """Draw the configurations for a relation.

        Args:
            forms: the texts that ask its question, the inspection prompt first.
            deepest: the verbalizer's last layer.
        """
        prompts = self.own_prompts(forms)
        layers = parse_layers(self.target_layers, deepest)
        plain = Configuration(prompts[0], 0, min(layers, key=lambda layer: abs(layer - 1)), 1.0)
        every = [
            Configuration(prompt, i // len(self.placeholders), layer, float(amplifier))
            for (i, prompt), layer, amplifier in itertools.product(enumerate(prompts), layers, self.amplifiers)
        ]
        others = [one for one in every if one != plain]
        return (plain, *random.Random(self.seed).sample(others, min(self.budget - 1, len(others))))

    def named(self, name: str, forms: tuple[str, ...]) -> Configuration:
        """Return the configuration that records call by this name.

        Raises:
            LensbenchError: no such configuration.
        """
        found = NAME.fullmatch(name)
        prompts = [one for one in self.own_prompts(forms) if found and one.placeholder == found["placeholder"]]
        if found is None or int(found["form"]) >= len(prompts):
            raise LensbenchError(
                f"{name!r} is not a configuration of this search; give the settings that it was made with"
            )
        form = int(found["form"])
        return Configuration(prompts[form], form, int(found["layer"]), float(found["amplifier"]))

    def own_prompts(self, forms: tuple[str, ...]) -> tuple[OwnPrompt, ...]:
        """Return every prompt that may be drawn: baselines may choose among all of them."""
        texts = dict.fromkeys([*forms, *self.prompts])
        return tuple(OwnPrompt(text, placeholder) for text in texts for placeholder in self.placeholders)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every layer's residual of every item in every configuration."""
        verbalizer, values = self.verbalizer_, evidence.residuals.values
        drawn = self.configurations(evidence.forms, verbalizer.n_layers)
        tokens = [verbalizer.tokens.answer_token(answer) for answer in evidence.answers]
        layers, items, _ = values.shape
        scores = torch.empty(layers, len(drawn), items, len(tokens))
        ranks = torch.empty(layers, len(drawn), items, len(tokens), dtype=torch.long)
        whole = torch.empty_like(scores) if evidence.whole_answers else None
        for own in dict.fromkeys(one.prompt for one in drawn):
            places = [i for i, one in enumerate(drawn) if one.prompt == own]
            prompt = make_prompt(verbalizer, own.text, own.placeholder)
            # One call a prompt: rows of all its target layers run in the same batches.
            vectors = torch.stack([values * drawn[i].amplifier for i in places], dim=1)
            targets = torch.tensor([drawn[i].target_layer for i in places])[None, :, None].expand(layers, -1, items)
            found = patcher_of(verbalizer).score(prompt, vectors.flatten(0, 2), targets.flatten(), tokens)
            shape = (layers, len(places), items, len(tokens))
            scores[:, places] = found.log_probs.reshape(shape).cpu().float()
            ranks[:, places] = found.ranks.reshape(shape).cpu()
            if whole is not None:
                ids = verbalizer.tokens.whole_ids(evidence.answers, own.text)
                said = patcher_of(verbalizer).score_answers(prompt, vectors.flatten(0, 2), targets.flatten(), ids)
                whole[:, places] = said.log_probs.reshape(shape).cpu().float()
        return Scores(tuple(one.name for one in drawn), scores, ranks, whole=whole)
