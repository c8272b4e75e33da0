"""The parts of blocks: they add up, whatever the architecture, and are what a plain hook sees."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lensbench.models.activations import Reading, capture
from lensbench.models.component_capture import (
    Component,
    capture_component,
    head_directions,
    heads_of,
    neuron_directions,
    require_component,
    through_heads,
    values_through_heads,
)
from lensbench.models.components import ComponentError, final_norm, find_parts
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import fit_frozen_norm, pulled_back
from lensbench.models.loading import enlarge
from lensbench.models.tokens import Tokens
from tests import tiny

# What the configurations of tests/tiny.py leave out.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "granite with multipliers": ("granite", {"residual_multiplier": 0.3, "embedding_multiplier": 2.0}),
    "gpt_neox one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon with biases": ("falcon", {"bias": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "cohere2": ("cohere2", {**tiny.CONFIGS["cohere"], "sliding_window": 4}),
    "shared expert": ("qwen2_moe", {**tiny.CONFIGS["llama"], "num_experts": 4, "moe_intermediate_size": 24}),
}
KINDS = (*tiny.CONFIGS, *tiny.HYBRIDS, *MORE)
NO_NEURONS = ("mixtral", "shared expert", "mamba")
TEXTS = [tuple(range(20, 20 + length)) for length in (5, 9, 2, 7)]
LAYERS = (0, 1, 2, 3, 4)


def module_of(kind: str) -> nn.Module:
    """Return a random model whose biases and gains are random too: fresh ones are zeros and ones, and hide mistakes."""
    name, settings = MORE.get(kind, (kind, {}))
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **((tiny.CONFIGS | tiny.HYBRIDS).get(name, {}) | settings))
    module = AutoModelForCausalLM.from_config(config).float().eval()
    enlarge(module)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return module


@cache
def model_of(kind: str) -> LanguageModel:
    return LanguageModel(module_of(kind), Tokens(tiny.tokenizer()), f"tiny {kind}")


def read(model: LanguageModel, name: Component) -> Tensor:
    return capture_component(model, TEXTS, name, LAYERS)


def residuals(model: LanguageModel) -> Tensor:
    return capture(model, [Reading(text) for text in TEXTS], LAYERS).values.float()


def close(found: Tensor, expected: Tensor, off: float = 2e-6) -> None:
    """Compare on the scale of the largest number."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= off * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_what_blocks_add(kind: str) -> None:
    model = model_of(kind)
    layers = residuals(model)
    added = read(model, "attention")
    if kind != "mamba":
        mlp = read(model, "mlp")
        assert float(mlp[1:].abs().amin(0).max()) > 0
        close(read(model, "mlp_input")[1:], layers[1:] - mlp[1:])
        added = added + mlp
    assert not added[0].any()
    # On the scale of the stream itself: a difference of layers keeps its rounding.
    assert float((layers[1:] - layers[:-1] - added[1:]).abs().max()) <= 1e-6 * float(layers.abs().max())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mamba"])
def test_heads_and_their_bias_add_up_to_attention(kind: str) -> None:
    model = model_of(kind)
    heads = read(model, "heads").unflatten(2, (heads_of(model) + 1, -1))
    close(heads.sum(2), read(model, "attention"))
    assert float(heads[1:, :, :-1].abs().amax(-1).min()) > 0
    values = read(model, "head_values")
    for layer in LAYERS[1:]:
        each = head_directions(model, layer, torch.eye(model.d_model))
        found = torch.einsum("ihw,ahw->iha", values[layer].unflatten(1, (heads_of(model), -1)), each)
        close(found, heads[layer, :, :-1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NO_NEURONS])
def test_neurons_and_bias_add_up_to_the_mlp(kind: str) -> None:
    model = model_of(kind)
    mlp, neurons = read(model, "mlp"), read(model, "neurons")
    for layer in LAYERS[1:]:
        part = find_parts(model)[layer - 1].require_mlp()
        bias = part.require_map().linear(torch.zeros(1, neurons.shape[2]))
        # Models with a norm behind the MLP have no bias before or in it.
        assert not part.require_map().norm.scaled or not bias.any()
        each = neuron_directions(model, layer, torch.eye(model.d_model))
        close(neurons[layer] @ each.T + part.factor * bias, mlp[layer])


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_norm_with_its_scale_frozen_is_the_final_norm(kind: str) -> None:
    model = model_of(kind)
    norm, scale, last = final_norm(model), read(model, "final_scale"), residuals(model)[-1]
    assert scale.shape == (5, 4, 1)
    assert bool((scale == scale[0]).all())
    close(norm.linear(last) * scale[-1] + norm.bias, model.norm(last))
    directions = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    close(last @ norm.back(directions).T, norm.linear(last) @ directions.T)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon", "gemma3_text", "mixtral", "mamba"])
def test_texts_in_a_batch_read_as_one_by_one(kind: str) -> None:
    model = model_of(kind)
    for name in ("attention", "mlp", "mlp_input", "heads", "head_values", "neurons", "final_scale"):
        try:
            require_component(model, name)
        except ComponentError:
            continue
        together = read(model, name)
        alone = [capture_component(model, [text], name, LAYERS) for text in TEXTS]
        close(together, torch.cat(alone, dim=1), off=1e-5)
        assert torch.equal(capture_component(model, TEXTS, name, (3, 0)), together[[3, 0]])
        assert torch.equal(capture_component(model, TEXTS, name, (0,)), together[:1])


def test_parts_are_what_plain_hooks_see() -> None:
    """Parallel blocks that add one part into the other's output, in place."""
    model = model_of("falcon")
    seen: dict[str, Tensor] = {}
    block = model.module.transformer.h[1]
    hooks = [
        block.self_attention.dense.register_forward_hook(lambda _m, _a, out: seen.update(attention=out[0, -1].clone())),
        block.mlp.dense_4h_to_h.register_forward_hook(
            lambda _m, a, out: seen.update(neurons=a[0][0, -1], mlp=out[0, -1].clone())
        ),
    ]
    with torch.no_grad():
        model.module(torch.tensor([TEXTS[1]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        close(read(model, name)[2, 1], value)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon", "gemma3_text", "olmo2", "granite with multipliers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Parts are found in half precision, and hold what they hold in full, to its rounding."""
    full = model_of(kind)
    half = LanguageModel(module_of(kind).to(dtype), Tokens(tiny.tokenizer()), f"half {kind}")
    for blocks in zip(find_parts(half), find_parts(full), strict=True):
        (mixer, mlp), (expected, expected_mlp) = [(block.attention, block.mlp) for block in blocks]
        assert (mlp is None) == (expected_mlp is None)
        for one, other in ((mixer, expected), (mlp, expected_mlp)) if mlp is not None else ((mixer, expected),):
            assert one.factor == pytest.approx(other.factor, rel=1e-2)
            assert type(one.module) is type(other.module)
            norms = [part.require_map().norm for part in (one, other)]
            assert (norms[0].centred, norms[0].scaled) == (norms[1].centred, norms[1].scaled)
    close(final_norm(half).gain, final_norm(full).gain, off=1e-2)
    close(final_norm(half).bias + 1, final_norm(full).bias + 1, off=1e-2)
    close(read(half, "attention")[1:], read(full, "attention")[1:], off=0.1)


def test_a_small_attention_beside_a_large_mlp_is_a_part() -> None:
    """As where a block makes an attention sink: its MLP adds thousands of times what its attention does."""
    module = module_of("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.mul_(1e5)
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "sink")
    parts = find_parts(model)[1]
    assert parts.attention.module is module.model.layers[1].self_attn.o_proj
    assert parts.mlp is not None
    assert parts.mlp.module is module.model.layers[1].mlp.down_proj


def test_what_cannot_be_told_apart_is_refused() -> None:
    module = module_of("llama")
    module.model.layers[2].mlp = module.model.layers[1].mlp
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "shared")
    with pytest.raises(ComponentError, match=r"shared: no two modules of block 2 add up"):
        find_parts(model)


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("mamba", "mlp", "blocks have one part"),
        ("mamba", "heads", "no attention heads"),
        ("mamba", "neurons", "blocks have one part"),
        ("mixtral", "neurons", "no single output map"),
        ("shared expert", "neurons", "no single output map"),
    ],
)
def test_missing_components_are_named(kind: str, name: Component, complaint: str) -> None:
    with pytest.raises(ComponentError, match=complaint):
        capture_component(model_of(kind), TEXTS, name, LAYERS)


def test_linear_attention_has_no_heads() -> None:
    """Its output map may be as wide as that of attention heads, but nothing is looked up."""
    settings = {
        **tiny.CONFIGS["qwen3"],
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 4,
    }
    settings |= {"linear_key_head_dim": 8, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    settings |= {"num_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_next", **settings)).float().eval()
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "mixed")
    assert len(find_parts(model)) == 4
    with pytest.raises(ComponentError, match="no attention heads"):
        require_component(model, "heads")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon", "gemma3_text", "olmo2", "gptj"])
def test_through_heads_is_a_pass_over_that_residual_alone(kind: str) -> None:
    model = model_of(kind)
    values = residuals(model)[2]
    found = through_heads(model, 3, values)
    assert found.shape == (4, 5, 32)
    each = head_directions(model, 3, torch.eye(32))
    handed = values_through_heads(model, 3, values).unflatten(1, (4, -1))
    close(torch.einsum("ihw,ahw->iha", handed, each), found[:, :-1])
    # A text of one token: attention there adds what its heads do.
    first = capture(model, [Reading((20,))], LAYERS).values
    close(through_heads(model, 3, first[2]).sum(1), capture_component(model, [(20,)], "attention", (3,))[0])


def test_small_budgets_give_the_same() -> None:
    model = LanguageModel(module_of("llama"), Tokens(tiny.tokenizer()), "narrow")
    expected, through = read(model, "heads"), through_heads(model, 1, residuals(model)[0])
    model.budget.bytes = 1
    close(read(model, "heads"), expected)
    close(through_heads(model, 1, residuals(model)[0]), through)


class Packed(nn.Linear):
    """Weights that cannot be used as a matrix, as quantised ones."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features)
        self.packed, self.bias = plain.weight.flip(0), plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.packed.flip(0).T + self.bias


def test_pulled_back_is_the_transpose_also_of_packed_weights() -> None:
    torch.manual_seed(0)
    plain, directions = nn.Linear(7, 5), torch.randn(3, 5)
    for linear in (plain, Packed(plain)):
        torch.testing.assert_close(pulled_back(linear, directions), directions @ plain.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("norm", "centred", "epsilon"),
    [(nn.LayerNorm(16, eps=1e-5), True, 1e-5), (nn.RMSNorm(16, eps=1e-6), False, 1e-6), (nn.RMSNorm(16), False, None)],
    ids=["LayerNorm", "RMSNorm", "RMSNorm without epsilon"],
)
def test_norms_are_found(norm: nn.Module, centred: bool, epsilon: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
        if centred:
            norm.bias.copy_(0.1 * torch.randn(16))
        x = 3 * torch.randn(24, 16) + 1
        x[0] *= 1e3  # a sink
        found = fit_frozen_norm(norm.to(dtype), x, dtype)
        rows = torch.randn(8, 16).to(dtype).float()
        rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        close(found.linear(rows) * found.scale(rows) + found.bias, norm(rows.to(dtype)).float(), off=rounding)
    norm.float()
    assert found.scaled
    assert found.centred == centred
    if epsilon and dtype == torch.float32:
        assert found.epsilon == epsilon


def test_what_is_no_norm_is_refused() -> None:
    with pytest.raises(Exception, match="no RMSNorm or LayerNorm"):
        fit_frozen_norm(torch.tanh, torch.randn(24, 16), torch.float32)
