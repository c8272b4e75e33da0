"""What is linear in a model: its embeddings, the directions of its head, linear maps, and norms with a frozen scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lensbench.errors import LensbenchError
from lensbench.models.architecture import on_input, probe_ids, removing
from lensbench.models.language_model import LanguageModel
from lensbench.models.precision import in_float64

# How far a norm's own numbers may lie from the form's, relative to the largest; norms in half precision round twice.
NORM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# What norms add to the mean square.
EPSILONS = (0.0, 1e-12, 1e-8, 1.1920929e-07, 1e-6, 1e-5, 1e-4, 1e-3)
# The sizes at which a norm is tried, in root mean squares: at the small ones epsilon shows.
SIZES = (1.0, 1e-2, 1e-3)
LINEAR = (nn.Linear, Conv1D)
# Cosines that are held at once.
AT_ONCE = 2**24


@dataclass(frozen=True)
class FrozenNorm:
    """y = gain ⊙ c(x) / σ(x) + bias, with c(x) = x or x - mean(x), and σ² the mean square of c(x), plus epsilon.

    With σ frozen it is linear: the parts of x add up to y. RMSNorm and LayerNorm are of this form; no norm at all
    (y = x) is too, with σ = 1.

    Attributes:
        gain: [d_model].
        bias: [d_model].
        centred: whether the mean is taken out.
        scaled: whether σ is divided by.
        epsilon: what is added to the mean square.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    scaled: bool
    epsilon: float

    def centre(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return c(x), which is its own transpose."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"]:
        """Return 1/σ(x)."""
        if not self.scaled:
            return torch.ones_like(x[..., :1])
        return (self.centre(x).square().mean(-1, keepdim=True) + self.epsilon).rsqrt()

    def linear(self, part: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return gain ⊙ c(part), to be multiplied by the frozen scale of the whole."""
        return self.gain.to(part.device) * self.centre(part)

    def back(self, directions: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return the transpose of `linear` on directions: what reads x as they read y."""
        return self.centre(self.gain.to(directions.device) * directions)


def no_norm(width: int, device: torch.device) -> FrozenNorm:
    """Return the norm that leaves all as it is."""
    ones = torch.ones(width, device=device)
    return FrozenNorm(ones, torch.zeros_like(ones), centred=False, scaled=False, epsilon=0.0)


def fit_frozen_norm(
    norm: Callable[[Tensor], Tensor], x: Float[Tensor, "row d_model"], dtype: torch.dtype
) -> FrozenNorm:
    """Return the form of a norm, found by calling it on some rows and their negatives, at several sizes.

    N(x) + N(-x) is twice the bias, and N(x) - N(-x) twice what has none: neither is taken for the other.

    Raises:
        LensbenchError: no norm of this form does what it does, to `NORM_TOLERANCE` of the largest output.
    """
    unit = x.float() / x.float().square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    # As the norm is given it: what is rounded away is no part of it.
    rows = torch.cat([x.to(dtype), *(size * unit.to(dtype) for size in SIZES)])
    plus, minus = in_float64(norm(rows)), in_float64(norm(-rows))
    given, odd, bias = in_float64(rows), (plus - minus) / 2, ((plus + minus) / 2).mean(0)
    forms = [(False, False, 0.0), *((centred, True, epsilon) for centred in (False, True) for epsilon in EPSILONS)]
    ones, zeros = torch.ones_like(bias), torch.zeros_like(bias)
    found = [_fitted(FrozenNorm(ones, zeros, *form), given, odd) for form in forms]
    # min takes the first of equals: no norm before a norm.
    _, best = min(found, key=lambda pair: pair[0])
    fitted = best.linear(given) * best.scale(given) + bias
    off = float((fitted - plus).abs().max() / plus.abs().max().clamp(min=1e-12))
    if not off <= NORM_TOLERANCE[dtype]:
        raise LensbenchError(f"the norm is no RMSNorm or LayerNorm with a frozen scale (off by {off:.0e})")
    return replace(best, gain=best.gain.float(), bias=bias.float())


def _fitted(trial: FrozenNorm, x: Tensor, odd: Tensor) -> tuple[float, FrozenNorm]:
    """Solve odd = gain c(x)/σ(x) for each coordinate by least squares over rows; return the error, and the norm."""
    given = trial.centre(x) * trial.scale(x)
    gain = (given * odd).sum(0) / given.square().sum(0).clamp(min=1e-30)
    return float((gain * given - odd).square().sum()), replace(trial, gain=gain)


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Return how many numbers a linear map takes and gives; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        takes, gives = module.weight.shape
        return int(takes), int(gives)
    return None


def width_of(linear: nn.Module) -> int:
    """Return how many numbers a linear map takes."""
    weight: Any = linear.weight
    return int(weight.shape[0] if isinstance(linear, Conv1D) else linear.in_features)  # type: ignore[arg-type]


def pulled_back(linear: nn.Module, directions: Float[Tensor, "answer d_model"]) -> Float[Tensor, "answer width"]:
    """Return Wᵀu for each direction u: what one unit of each of the map's inputs adds along it."""
    weight: Any = linear.weight
    if type(linear) in LINEAR and weight.is_floating_point() and not weight.is_meta:
        plain: Tensor = weight.T if isinstance(linear, Conv1D) else weight
        return directions.float().to(plain.device) @ plain.float()
    # Packed and quantised weights, and those kept elsewhere until they are needed, have no plain matrix.
    hook: Any = getattr(linear, "_hf_hook", None)
    device = hook.execution_device if weight.is_meta and hook is not None else weight.device
    with torch.enable_grad():
        inputs = torch.zeros(len(directions), width_of(linear), device=device, requires_grad=True)
        out = linear(inputs.to(weight.dtype) if weight.is_floating_point() else inputs).float()
        (found,) = torch.autograd.grad((out * directions.to(out)).sum(), inputs)
    result: Tensor = found
    return result


def token_directions(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
    """Return the gradient of each token's logit with respect to the final norm's output, at zero.

    That is the head's row for the token, times the model's logit scale; a soft-cap has the slope 1 at zero. Taken by a
    backward pass, so that a head without a plain weight (packed, quantised, a projection before it) gives its
    directions too. A model without a final norm has them with respect to the residual stream itself.
    """
    return _rows_of_head(model, token_ids)[:, :-1]


def token_biases(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, " token"]:
    """Return each token's logit where the final norm's output is zero: the head's bias."""
    return _rows_of_head(model, token_ids)[:, -1]


def _rows_of_head(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model_and_bias"]:
    kept: dict[int, Tensor] = model.cache.get_or_compute("directions", dict)
    missing = sorted(set(token_ids) - set(kept))
    # A backward pass holds the logits of a row, their gradient, and what it keeps of them on the way.
    parts = model.budget.in_batches(
        len(missing), lambda _begin: max(1, model.head_rows // 4), lambda rows: _head_gradients(model, missing[rows])
    )
    kept.update(zip(missing, (row for part in parts for row in part), strict=True))
    return torch.stack([kept[token] for token in token_ids])


def _head_gradients(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model_and_bias"]:
    """Run the model without its blocks, zeros in place of the final norm's output, and go back from the logits."""
    zeros = torch.zeros(len(token_ids), 1, model.d_model, dtype=model.dtype, device=model.device, requires_grad=True)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        # What changes the width is no norm: a projection, or the head itself.
        same = isinstance(output, Tensor) and output.shape[-1] == model.d_model
        return zeros.to(output) if same else output

    final = model.parts.final
    with (
        on_input([final], lambda _, given: zeros.to(given)),
        removing([final.register_forward_hook(after)]),
        torch.enable_grad(),
        model.parts.without_blocks(),
    ):
        ids = probe_ids(model.module)[:, :1].expand(len(token_ids), 1)
        logits = model.module(ids, use_cache=False).logits[:, 0]
        asked = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
        (gradient,) = torch.autograd.grad(asked.float().sum(), zeros)
    return torch.cat([gradient[:, 0].float(), asked.detach().float().to(gradient.device)], dim=1)


@torch.no_grad()
def embed(model: LanguageModel, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
    """Return the input embeddings of tokens, in float32, on the model's device.

    They come from the model's own module, scale included (Gemma), so that packed tables and those that are kept
    elsewhere until they are needed give theirs too. What a model adds later (positions) is not in them.
    """
    table: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    rows: Tensor = table(ids.to(model.device))
    return rows.float().to(model.device)


def readable_ids(model: LanguageModel) -> Int[Tensor, " token"]:
    """Return every token that has a text: neither special, nor a row of the table that the tokenizer does not know."""
    known, special = min(model.vocabulary, len(model.tokens.tokenizer)), model.tokens.special_ids
    return model.cache.get_or_compute(
        "readable_ids", lambda: torch.tensor([token for token in range(known) if token not in special])
    )


def _embedding_lengths(model: LanguageModel) -> Float[Tensor, " token"]:
    """Return the length of every input embedding, 1 for one that is all zeros, so that it can be divided by."""

    def measure() -> Tensor:
        every = torch.arange(model.vocabulary, device=model.device).split(AT_ONCE // model.d_model)
        lengths = torch.cat([torch.linalg.vector_norm(embed(model, ids), dim=1) for ids in every])
        return torch.where(lengths > 0, lengths, 1.0)

    return model.cache.get_or_compute("embedding_lengths", measure)


@torch.no_grad()
def nearest_tokens(
    model: LanguageModel, vectors: Float[Tensor, "row d_embed"], among: Int[Tensor, " token"]
) -> Int[Tensor, " row"]:
    """Return for each vector the token whose input embedding has the largest cosine with it.

    Args:
        model: whose table is searched.
        vectors: compared in float32.
        among: the tokens to choose from, at least one; the first of them where several are equally near.
    """
    rows = vectors.to(model.device).float()
    best = torch.full((len(rows),), -torch.inf, device=model.device)
    found = torch.zeros(len(rows), dtype=torch.long, device=model.device)
    lengths = _embedding_lengths(model)
    for ids in among.to(model.device).split(max(1, AT_ONCE // max(1, len(rows)))):
        cosines, place = (rows @ embed(model, ids).T / lengths[ids]).max(dim=1)
        nearer = cosines > best
        best, found = torch.where(nearer, cosines, best), torch.where(nearer, ids[place], found)
    return found
