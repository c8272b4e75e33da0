"""The sidecar `nla_meta.yaml` of natural-language autoencoders: what verbalizer and reconstructor were trained with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.chat import Conversation
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Prompt, make_prompt
from lensbench.tasks.facts import SLOT
from lensbench.tasks.turns import ASSISTANT
from lensbench.utils.foreign import FOREIGN, read_text

SIDECAR = "nla_meta.yaml"
Half = Literal["av", "ar"]
# What older files call the two.
ALIASES: Mapping[Half, str] = {"av": "actor", "ar": "critic"}
SQRT_D = "sqrt_d_model"


@dataclass(frozen=True)
class NLAMeta:
    """What a folder of a natural-language autoencoder says of itself.

    Attributes:
        half: `av`, the verbalizer, or `ar`, the reconstructor.
        d_model: width of the activations.
        block: K: activations are the output of this block, counted from 0, which is our layer K + 1.
        template: of the verbalizer's user turn, with `{injection_char}`; of the reconstructor's text, with
            `{explanation}`.
        scale: the length of a vector that the verbalizer's embedding is replaced with.
        mark: the character whose embedding that is.
        ids: its token, and those before and after it; of a verbalizer.
        suffix: the last tokens of the reconstructor's text; none where that is not known.
    """

    half: Half
    d_model: int
    block: int
    template: str
    scale: float | None = None
    mark: str = ""
    ids: tuple[int, int, int] | None = None
    suffix: tuple[int, ...] = ()

    @property
    def length(self) -> float:
        """The length of a vector that the verbalizer's embedding is replaced with.

        Raises:
            UsageError: the sidecar is a reconstructor's, and has none.
        """
        if self.scale is None:
            raise UsageError("nla.av: its sidecar has no injection_scale; give the folder of a verbalizer")
        return self.scale

    @property
    def layer(self) -> int:
        """The layer that is read."""
        return self.block + 1

    def write(self, folder: Path) -> None:
        """Write the sidecar into a folder."""
        token, left, right = self.ids or (None, None, None)
        found = {
            "kind": "nla_model",
            "schema_version": 2,
            "role": self.half,
            "d_model": self.d_model,
            "extraction_layer_index": self.block,
            "extraction": {"injection_scale": self.scale, "mse_scale": math.sqrt(self.d_model)},
            "tokens": {
                "injection_char": self.mark or None,
                "injection_token_id": token,
                "injection_left_neighbor_id": left,
                "injection_right_neighbor_id": right,
                "critic_suffix_ids": list(self.suffix) or None,
            },
            "prompt_templates": {self.half: self.template},
        }
        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
        (folder / SIDECAR).write_text(text, encoding="utf-8")

    def prompt(self, verbalizer: LanguageModel) -> Prompt:
        """Return the verbalizer's prompt, the mark at its slot, as its sidecar says.

        Raises:
            UsageError: the mark is another token there, or has other neighbours, than in training.
        """
        try:
            prompt = make_prompt(verbalizer, self.conversation, self.mark)
        except LensbenchError as error:
            raise UsageError(f"{SIDECAR}: {error}; get the verbalizer with its own tokenizer") from None
        at = prompt.position
        found = prompt.ids[at], prompt.ids[at - 1], (*prompt.ids, -1)[at + 1]
        if found != self.ids or prompt.ids.count(found[0]) != 1:
            raise UsageError(
                f"{SIDECAR}: the tokens of the slot and beside it are {self.ids}, {verbalizer.name} has {found}, "
                f"{prompt.ids.count(found[0])} times; get the verbalizer with its own tokenizer"
            )
        return prompt

    @property
    def conversation(self) -> Conversation:
        """The user's turn, with a slot for the activation."""
        return Conversation((("user", self.template.replace("{injection_char}", SLOT)), (ASSISTANT, "")))


def read_meta(folder: Path, half: Half) -> NLAMeta:
    """Read the sidecar of a verbalizer or of a reconstructor.

    Raises:
        UsageError: no such file, or of the other half, or it lacks what is needed.
    """
    file = folder / SIDECAR
    if not file.is_file():
        raise UsageError(f"{folder} holds no {SIDECAR}; give a folder of a natural-language autoencoder")
    try:
        found = yaml.safe_load(read_text(file))
        role = str(found["role"])
        if role in (half, ALIASES[half]):
            return _parsed(found, half)
    except (*FOREIGN, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{file} is no sidecar of an {half} ({reason}); get it again") from None
    raise UsageError(f"{file}: role is {role!r}; give the folder whose role is {half!r}")


def _parsed(found: Mapping[str, Any], half: Half) -> NLAMeta:
    extraction, tokens = found.get("extraction") or {}, found.get("tokens") or {}
    templates, own = found["prompt_templates"], found.get(ALIASES[half]) or found.get(half) or {}
    d_model = int(found["d_model"] if "d_model" in found else extraction["d_model"])
    blocks = (where.get(key) for where in (found, extraction, own) for key in ("extraction_layer_index", "layer_index"))
    block = next((int(one) for one in blocks if one is not None), None)
    template = str(templates.get(half) or templates[ALIASES[half]])
    slot = "{injection_char}" if half == "av" else "{explanation}"
    if block is None or template.count(slot) != 1:
        raise ValueError("no extraction_layer_index" if block is None else f"its template has no {slot}")
    if half == "ar":
        if extraction.get("mse_scale", SQRT_D) is None:
            raise ValueError("mse_scale is null: lengths count there, which are not compared here")
        return NLAMeta(half, d_model, block, template, suffix=tuple(map(int, tokens.get("critic_suffix_ids") or ())))
    scale = extraction["injection_scale"]
    ids = tuple(int(tokens[f"injection_{one}_id"]) for one in ("token", "left_neighbor", "right_neighbor"))
    length = math.sqrt(d_model) if scale == SQRT_D else float(scale)
    return NLAMeta(half, d_model, block, template, length, str(tokens["injection_char"]), (ids[0], ids[1], ids[2]))
