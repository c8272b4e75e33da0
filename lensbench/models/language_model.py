"""LanguageModel: the one class that knows a transformers model."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.models.architecture import (
    Architecture,
    ArchitectureError,
    ModulePaths,
    checksum,
    find_architecture,
    input_device,
    on_input,
    only_tokens,
    probe_ids,
    unembed,
    weights_of,
)
from lensbench.models.memory import Budget, Memo, bytes_per_row, free_memory
from lensbench.models.precision import plain_parts, tolerance_of
from lensbench.models.proofs import proved
from lensbench.models.token_scores import TokenScores, score_logits
from lensbench.models.tokens import Tokens

# On a CPU, larger batches of logits are no faster, and leave its caches.
CPU_LOGITS_BYTES = 128 * 2**20
# Rows that go at once through a head of a few tokens.
NARROW_ROWS = 4096


# Settings that say where a model lies and what wrote it, not what it computes.
UNRELATED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def relative_deviation(found: Tensor, reference: Tensor) -> float:
    """Return how far numbers lie from a reference, relative to its largest where that is above 1."""
    return float((found - reference).abs().max()) / max(1.0, float(reference.abs().max()))


class _Stop(Exception):  # noqa: N818 - not an error: ends a forward pass after the deepest layer asked
    pass


class LanguageModel:
    """A decoder whose residual stream can be read at every layer.

    Args:
        module: a causal language model of transformers, on its device, in evaluation mode.
        tokens: its tokenizer.
        name: how records name it.
        paths: module paths, where structure is not found by itself.

    Raises:
        ArchitectureError: blocks, norm or head not found, or reading the last layer does not give the model's own
            logits.
    """

    def __init__(self, module: nn.Module, tokens: Tokens, name: str, paths: ModulePaths | None = None) -> None:
        self.module = module.eval().requires_grad_(False)
        self.tokens = tokens
        self.name = name
        config: Any = module.config
        text_config = config.get_text_config()
        self.parts: Architecture = find_architecture(module, int(text_config.num_hidden_layers), paths)
        self.n_layers = len(self.parts.blocks)
        self.dtype: torch.dtype = next(module.parameters()).dtype
        self.device: torch.device = input_device(module)
        # How far numbers of two ways to the same result may lie apart, in this precision.
        self.tolerance = tolerance_of(module, self.dtype)
        self.budget = Budget(free_memory(self.device), self.device)
        self.d_model = self._prove()
        # What is computed once for a model, and lives as long as it does: its patcher, its parts, its Jacobians.
        self.cache = Memo()
        # Of the Hub, for what else belongs to the model there, such as a lens.
        self.revision: str | None = None
        self.offline = False
        # What it was loaded with besides, as `--model-args` says it; see `lensbench.models.model_args`.
        self.model_args: Mapping[str, Any] = {}
        # Where what is proved of it is kept; see `lensbench.models.proofs`.
        self.proofs: Path | None = None

    def __repr__(self) -> str:
        what = f"{self.n_layers} layers of {self.d_model} dimensions"
        return f"LanguageModel({self.name!r}, {what}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs of it; what has been computed on the way stays here."""
        return {**vars(self), "cache": Memo()}

    def _prove(self) -> int:
        ids = probe_ids(self.module)
        with torch.no_grad():
            logits = self.module(ids, use_cache=False).logits[0].float()
        self._require_causal(ids, logits)
        last = self.text_residuals(ids)[0]
        off = relative_deviation(self.unembed(last), logits)
        if not off <= self.tolerance:
            raise ArchitectureError(
                f"{self.name}: reading the last layer at {self.parts.paths.norm} gives logits off by {off:.1e} "
                f"(tolerance {self.tolerance:.0e}); name the modules with --module-paths blocks=PATH,norm=PATH"
            )
        return int(last.shape[-1])

    def _require_causal(self, ids: Int[Tensor, "1 token"], logits: Float[Tensor, "token vocab"]) -> None:
        """Refuse a model whose earlier states change with later tokens: what it is to say next, it has seen."""
        other = ids.clone()
        other[0, -1] = ids[0, 0]
        with torch.no_grad():
            changed = self.module(other, use_cache=False).logits[0].float()
        off = relative_deviation(changed[:-1], logits[:-1])
        if not off <= self.tolerance:
            raise ArchitectureError(
                f"{self.name} is not causal: what it says at a token changes with later tokens (by {off:.1e}); "
                "lensbench reads decoders, not encoders"
            )

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a text may have, as the model's configuration says; None where it does not."""
        config: Any = self.module.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(most) if isinstance(most, int) and most > 0 else None

    @property
    def attention(self) -> str:
        """The implementation of attention that is at work: `eager`, `sdpa`, ..."""
        config: Any = self.module.config
        return str(getattr(config, "_attn_implementation", None))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the configuration, of every weight, and of the tokenizer."""
        digest = hashlib.sha256()
        config: Any = self.module.config
        # Where it lies and by what it was written do not make it another model.
        settings = {key: value for key, value in config.to_dict().items() if key not in UNRELATED}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        weights = sorted(weights_of(self.module).items())
        for name, tensor in (part for weight in weights for part in plain_parts(*weight)):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {checksum(tensor)}".encode())
        digest.update(self.tokens.definition.encode())
        digest.update(self.tokens.prefix.encode())
        return digest.hexdigest()[:16]

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the residual stream at `layers` in the one pass inside, which ends after the deepest of them.

        Raises:
            LensbenchError: the pass did not come that far.
        """
        seen: dict[int, Tensor] = {}
        wanted, stops = sorted(set(layers)), self.stops

        def look(place: int, hidden: Tensor) -> None:
            seen[wanted[place]] = hidden
            if wanted[place] == wanted[-1]:
                raise _Stop

        with suppress(_Stop), on_input([stops[layer] for layer in wanted], look):
            yield seen
        if wanted[-1] not in seen:
            raise LensbenchError(f"{self.name}: no layer {wanted[-1]} was reached in a forward pass")

    @property
    def stops(self) -> list[nn.Module]:
        """The modules that are called with the residual stream of each layer: the blocks, then the final norm.

        Where a block is not called, the stream passes by it: the next module that is called gets its layer, too.
        """
        stops: list[nn.Module] = [self.parts.final]
        for block, called in zip(reversed(self.parts.blocks), reversed(self.parts.called), strict=True):
            stops.append(block if called else stops[-1])
        return stops[::-1]

    @torch.no_grad()
    def residuals(
        self,
        ids: Int[Tensor, "row token"],
        mask: Int[Tensor, "row seen"],
        positions: Int[Tensor, "row site"],
        layers: Sequence[int],
        prefix: Any = None,
    ) -> Float[Tensor, "layer row site d_model"]:
        """Run the model once and return the residual stream before the final norm, at the asked positions only.

        Args:
            ids: the texts, padded on the right.
            mask: 1 where there is text; as wide as prefix and ids together.
            positions: read sites, counted in `ids`.
            layers: 0 to L.
            prefix: the cache of tokens that all texts begin with and `ids` leaves out; see `shared_prefix`.

        Raises:
            LensbenchError: a text is longer than the model's positions.
        """
        if self.most_tokens is not None and mask.shape[1] > self.most_tokens:
            raise LensbenchError(
                f"a text has {mask.shape[1]} tokens, {self.name} reads at most {self.most_tokens}; give a shorter one"
            )
        with self.reading(layers) as seen:
            self.module(
                ids.to(self.device, non_blocking=True),
                attention_mask=mask.to(self.device, non_blocking=True),
                past_key_values=prefix,
                use_cache=prefix is not None,
            )
        # The layers of a model that is spread over devices come from several of them.
        rows = torch.arange(len(ids))[:, None]
        devices = {seen[layer].device for layer in layers}
        where = {to: (rows.to(to, non_blocking=True), positions.to(to, non_blocking=True)) for to in devices}
        return torch.stack([seen[layer][where[seen[layer].device]].to(self.device) for layer in layers])

    def text_residuals(
        self, ids: Int[Tensor, "1 token"], layers: Sequence[int] | None = None
    ) -> Float[Tensor, "layer token d_model"]:
        """Return the residual stream at every token of one text, by default at the last layer alone."""
        where = torch.arange(ids.shape[1])[None]
        return self.residuals(ids, torch.ones_like(ids), where, layers or (self.n_layers,))[:, 0]

    def with_module(self, module: nn.Module, name: str) -> "LanguageModel":
        """Return another model of the same structure, with this one's tokenizer and memory budget."""
        made = LanguageModel(module, self.tokens, name, self.parts.paths)
        made.budget, made.proofs, made.model_args = self.budget, self.proofs, self.model_args
        return made

    def unembed(self, residuals: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return logits from the residual stream of any layer: the model's own final norm and head. Differentiable."""
        return unembed(self.module, self.parts, residuals)

    def norm(self, residuals: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return residuals of any layer after the model's own final norm, in float32. Differentiable."""
        normed: Tensor = self.parts.final(residuals.to(self.dtype))
        return normed.float().to(residuals.device)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, as the model's configuration and its tokenizer say."""
        config: Any = self.module.generation_config
        ends = (config.eos_token_id if config is not None else None, self.tokens.tokenizer.eos_token_id)
        flat = [end for given in ends for end in (given if isinstance(given, list) else [given]) if end is not None]
        return tuple(sorted(set(flat)))

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self.module.get_input_embeddings().num_embeddings)  # type: ignore[operator]

    @property
    def head_rows(self) -> int:
        """How many rows go through the head at once."""
        vocab = self.vocabulary
        # Logits in the model's precision and in float32, and a comparison with each of them.
        return self.budget.rows(12 * vocab, cpu_most=max(1, CPU_LOGITS_BYTES // (4 * vocab)))

    @cached_property
    def token_bytes(self) -> int:
        """What one more token in a batch adds to the memory of a pass; measured."""
        ids = probe_ids(self.module).repeat(1, 4)

        def run(rows: int) -> object:
            mask = torch.ones_like(ids).expand(rows, -1)
            return self.residuals(ids.expand(rows, -1), mask, torch.zeros(rows, 1).long(), range(self.n_layers + 1))

        return proved(self, "token_bytes", lambda: bytes_per_row(run) // ids.shape[1] + 1)

    @torch.no_grad()
    def score_tokens(
        self,
        residuals: Float[Tensor, "row d_model"],
        token_ids: Sequence[int],
        top_k: int = 0,
        unembed: Callable[[Tensor], Tensor] | None = None,
    ) -> TokenScores:
        """Unembed and keep the asked tokens' log-probabilities and ranks, and the ids of the `top_k` likeliest.

        Args:
            residuals: of any layer.
            token_ids: the asked tokens.
            top_k: how many of the likeliest to name.
            unembed: a head in place of the model's own.
        """
        asked = torch.tensor(token_ids, device=self.device)
        head = unembed or self.unembed
        kept = self.budget.in_batches(
            len(residuals),
            lambda _begin: self.head_rows,
            lambda rows: score_logits(head(residuals[rows].to(self.device)), asked, top_k),
        )
        return TokenScores(*(torch.cat(parts) for parts in zip(*kept, strict=True)))

    @torch.no_grad()
    def token_logits(
        self, residuals: Float[Tensor, "row d_model"], token_ids: Sequence[int]
    ) -> Float[Tensor, "row token"]:
        """Unembed the asked tokens alone: they compare with each other as their log-probabilities do.

        Only the head's rows of these tokens are multiplied, where that is proved to give the model's own logits.
        """
        asked = torch.tensor(token_ids, device=self.device)
        head = self._head_by_rows
        if head is None:
            chunks = residuals.split(self.head_rows)
            return torch.cat([self.unembed(chunk.to(self.device))[:, asked] for chunk in chunks])
        with only_tokens(head, asked):
            return torch.cat([self.unembed(chunk.to(self.device)) for chunk in residuals.split(NARROW_ROWS)])

    @cached_property
    def _head_by_rows(self) -> nn.Linear | None:
        """The head, if it gives some tokens' logits without the others': tried on a probe text, soft-cap and all."""
        head: Any = self.module.get_output_embeddings()  # type: ignore[operator]
        if type(head) is not nn.Linear:
            return None
        last = self.text_residuals(probe_ids(self.module))[0]
        whole = self.unembed(last)
        some = torch.arange(0, whole.shape[1], max(1, whole.shape[1] // 16), device=self.device)
        try:
            with only_tokens(head, some):
                narrow = self.unembed(last)
            off = float((narrow - whole[:, some]).abs().max()) / max(1.0, float(whole.abs().max()))
        except Exception:  # whatever foreign code raises that counts on its whole vocabulary
            return None
        return head if off <= self.tolerance else None
