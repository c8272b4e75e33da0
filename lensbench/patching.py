"""The one patched forward pass: overwrite the residual of a prompt at one position and layer, and go on.

What depends on the patched vector is little: the tokens before the placeholder never change (run once, keys and values
shared), below the target layer nothing changes (a row starts there), only the last position is scored. See
docs/decisions/0005-patched-pass.md.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.model.block_calls import CleanPass, record_pass, shared_prefix
from lensbench.model.language_model import TOLERANCE, LanguageModel, TokenScores
from lensbench.model.memory import RowMemory

LOG = logging.getLogger("lensbench")
Mode = Literal["shared", "layer_start", "plain"]
MODES: tuple[Mode, ...] = get_args(Mode)
ACTIVATION_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Prompt:
    """A target prompt: token ids, and the position of the placeholder whose residual is overwritten."""

    ids: tuple[int, ...]
    position: int


def make_prompt(model: LanguageModel, text: str, placeholder: str) -> Prompt:
    """Return the prompt for `text`, whose slot `{subject}` the placeholder fills.

    Raises:
        LensbenchError: no slot in the text, or a placeholder that is not one token of its own, or is token 0.
    """
    if text.count("{subject}") != 1:
        raise LensbenchError(
            f"inspection prompt {text!r} has no single {{subject}} slot; put one where the activation goes"
        )
    start = text.index("{subject}")
    encoding = model.tokens.encode(text.replace("{subject}", placeholder))
    position = model.tokens.locate(encoding, (start, start + len(placeholder)))
    token_start = encoding.offsets[position][0] - len(model.tokens.prefix)
    if token_start > start:
        raise LensbenchError(
            f"placeholder {placeholder!r} is several tokens for {model.name}; choose a one-token word, such as 'x'"
        )
    return Prompt(encoding.ids, position)


class PatchedPass:
    """Patched passes of one prompt.

    Args:
        model: the verbalizer M*.
        prompt: the target prompt T and the position i* in it.
        mode: how much is shared between rows; `fastest_mode` finds what a model allows.
    """

    def __init__(self, model: LanguageModel, prompt: Prompt, mode: Mode) -> None:
        self.model = model
        self.prompt = prompt
        self.mode = mode
        self._ids = torch.tensor([prompt.ids], device=model.device)
        self._skip = prompt.position if mode == "shared" else 0
        self._clean: CleanPass | None = None

    def _recorded(self) -> CleanPass:
        if self._clean is None:
            prefix = self._ids[:, : self._skip]
            cache = shared_prefix(self.model, prefix) if self._skip else None
            self._clean = record_pass(self.model, self._ids[:, self._skip :], cache)
        return self._clean

    @property
    def rows_per_batch(self) -> int:
        """How many rows run at once: a function of model and prompt only, so that a plan gives the same bytes."""
        per_token = 24 * self.model.d_model * self.model.dtype.itemsize
        return max(1, ACTIVATION_BYTES // (per_token * (len(self.prompt.ids) - self._skip)))

    @torch.no_grad()
    def final_residuals(
        self, vectors: Float[Tensor, "row d_model"], target_layers: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """Overwrite the placeholder's residual at each row's target layer; return the last position's at layer L.

        Args:
            vectors: what to write, one row a pass.
            target_layers: l*, 0 (embeddings) to L, one a row.
        """
        order = torch.argsort(target_layers, stable=True)
        out = torch.empty_like(vectors, dtype=self.model.dtype, device=self.model.device)
        run = self._hooked if self.mode == "plain" else self._started
        for chunk in order.split(self.rows_per_batch):
            out[chunk.to(out.device)] = run(
                vectors[chunk].to(self.model.device, self.model.dtype), target_layers[chunk].tolist()
            )
        return out

    def _started(self, vectors: Tensor, layers: list[int]) -> Tensor:
        """Run rows that are sorted by target layer; each joins the batch at its own."""
        clean = self._recorded()
        place = self.prompt.position - self._skip
        running = vectors.new_empty(0, clean.hidden.shape[1], vectors.shape[1])
        begun = 0
        for layer in range(self.model.n_layers + 1):
            joining = layers.count(layer)
            if joining:
                rows = clean.hidden[layer].expand(joining, -1, -1).clone()
                rows[:, place] = vectors[begun : begun + joining]
                running = torch.cat([running, rows])
                begun += joining
            if layer < self.model.n_layers and begun:
                running = clean.calls[layer](running)
        return running[:, -1]

    def _hooked(self, vectors: Tensor, layers: list[int]) -> Tensor:
        """Run whole passes, the rows of a target layer in one: the definition, and the reference for other modes."""
        out = torch.empty_like(vectors)
        wanted = torch.tensor(layers, device=vectors.device)
        for layer in sorted(set(layers)):
            rows = (wanted == layer).nonzero().flatten()
            out[rows] = self._whole_pass(vectors[rows], layer)
        return out

    def _whole_pass(self, vectors: Tensor, layer: int) -> Tensor:
        seen: list[Tensor] = []

        def overwrite(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            hidden[:, self.prompt.position] = vectors
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        def keep(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else next(iter(kwargs.values())))[:, -1])

        places = [*self.model.parts.blocks, self.model.parts.final]
        handles = [
            places[layer].register_forward_pre_hook(overwrite, with_kwargs=True),
            self.model.parts.final.register_forward_pre_hook(keep, with_kwargs=True),
        ]
        try:
            self.model.module(self._ids.expand(len(vectors), -1), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return seen[0]


def agreement(model: LanguageModel, prompt: Prompt, mode: Mode) -> float:
    """Return how far a mode's logits lie from plain patched passes, relative to the largest logit.

    One row a target layer, of a fixed random vector on the scale of the prompt's own residuals there.

    Raises:
        ReplayError: the model defeats the mode.
    """
    layers = torch.arange(model.n_layers + 1, device=model.device)
    ids = torch.tensor([prompt.ids])
    clean = model.residuals(ids, torch.ones_like(ids), torch.tensor([[prompt.position]]), range(model.n_layers + 1))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape[0], clean.shape[-1], generator=generator).to(model.device, model.dtype)
    vectors = clean[:, 0, 0] + noise * clean[:, 0, 0].float().std(-1, keepdim=True).to(model.dtype)
    reference = model.unembed(PatchedPass(model, prompt, "plain").final_residuals(vectors, layers))
    other = model.unembed(PatchedPass(model, prompt, mode).final_residuals(vectors, layers))
    return float((reference - other).abs().max()) / max(1.0, float(reference.abs().max()))


def try_modes(model: LanguageModel, prompt: Prompt) -> Iterator[tuple[Mode, float, str]]:
    """Try the modes that share something: how far each lies from plain passes, or infinity and why it is impossible."""
    for mode in MODES[:-1]:
        try:
            yield mode, agreement(model, prompt, mode), ""
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a foreign block raises when called from the middle
            yield mode, math.inf, str(error)


def fastest_mode(model: LanguageModel, prompt: Prompt) -> Mode:
    """Return the mode that shares most and agrees with plain passes on this model and prompt."""
    for mode, off, reason in try_modes(model, prompt):
        if off <= TOLERANCE[model.dtype]:
            return mode
        LOG.info("%s: patched pass %s is not used (%s)", model.name, mode, reason or f"off by {off:.1e}")
    return "plain"


class Patcher:
    """Patched passes of one model: proves the mode once, keeps prompts, and computes identical rows once."""

    def __init__(self, model: LanguageModel, mode: Mode | None = None) -> None:
        self.model = model
        self.mode = mode
        self._passes: dict[Prompt, PatchedPass] = {}
        self._memory = RowMemory()

    def score(
        self,
        prompt: Prompt,
        vectors: Float[Tensor, "row d_model"],
        target_layers: Int[Tensor, " row"],
        token_ids: Sequence[int],
    ) -> TokenScores:
        """Patch each vector at its target layer and score the asked tokens as the next word.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        if vectors.shape[1] != self.model.d_model:
            raise LensbenchError(
                f"a vector of width {vectors.shape[1]} cannot be patched into {self.model.name} (width "
                f"{self.model.d_model}); choose a verbalizer of the target's width"
            )
        if self.mode is None:
            self.mode = fastest_mode(self.model, prompt)
        passes = self._passes.setdefault(prompt, PatchedPass(self.model, prompt, self.mode))

        def compute(rows: Tensor) -> TokenScores:
            final = passes.final_residuals(rows[:, 1:], rows[:, 0].round().long())
            return self.model.score_tokens(final, token_ids)

        keyed = torch.cat([target_layers[:, None].to(vectors), vectors], dim=1)
        return self._memory.answer((prompt, tuple(token_ids)), keyed, compute)


def patcher_of(model: LanguageModel) -> Patcher:
    """Return the one patcher of a model, so that its proof and its memory are shared by all methods."""
    # Kept by the model itself: a table of models would keep them alive.
    kept: Patcher = model.companions.setdefault("patcher", Patcher(model))
    return kept
