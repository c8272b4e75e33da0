"""Every architecture: structure found, layers read, patched passes equal to plain hooks on transformers."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from lensbench.explore.doctor import examine
from lensbench.models.architecture import ArchitectureError, ModulePaths
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import WRITES, PatchedPass, Prompt, fastest_mode
from lensbench.models.tokens import Tokens
from tests import tiny

PROMPT = Prompt(tuple(range(20, 31)), 6)
# The placeholder is the last token: what is patched at layer L is what is scored.
LAST = Prompt(PROMPT.ids, 10)
SEVERAL = Prompt(PROMPT.ids, 3, (4, 8))


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_doctor_accepts(kind: str) -> None:
    assert [check for check in examine(tiny.model(kind)) if not check.passed] == []


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_prefix_is_shared(kind: str) -> None:
    assert fastest_mode(tiny.model(kind), PROMPT) == "shared"
    assert fastest_mode(tiny.model(kind), LAST) == "shared"


@pytest.mark.parametrize("kind", tiny.HYBRIDS)
def test_hybrids_fall_back(kind: str) -> None:
    assert fastest_mode(tiny.model(kind), PROMPT) in ("layer_start", "plain")


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("mode", ["shared", "layer_start", "plain"])
@pytest.mark.parametrize("prompt", [PROMPT, LAST], ids=["inside", "last"])
def test_patched_pass_equals_naive_hooks(kind: str, mode: str, prompt: Prompt) -> None:
    model = tiny.model(kind)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, model.d_model, generator=generator) * 3
    layers = torch.tensor([4, 0, 1, 1, 2, 3, 3, 0, 4, 2, 1, 0])
    final = PatchedPass(model, prompt, mode).final_residuals(vectors, layers)
    naive = torch.stack([naive_patch(model, prompt, v, int(layer)) for v, layer in zip(vectors, layers, strict=True)])
    torch.testing.assert_close(model.unembed(final), naive, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
@pytest.mark.parametrize("write", WRITES)
def test_several_placeholders_and_ways_to_write(kind: str, write: str) -> None:
    model, prompt = tiny.model(kind), replace(SEVERAL, write=write)
    vectors = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(0)) * 3
    final = PatchedPass(model, prompt, fastest_mode(model, prompt)).final_residuals(vectors, torch.arange(5))
    naive = torch.stack([naive_patch(model, prompt, v, layer) for layer, v in enumerate(vectors)])
    torch.testing.assert_close(model.unembed(final), naive, rtol=2e-4, atol=2e-4)


def naive_patch(model: LanguageModel, prompt: Prompt, vector: torch.Tensor, layer: int) -> torch.Tensor:
    """One whole forward pass on transformers alone, blocks named by path; layer 4 is the last of these models."""
    blocks = model.module.get_submodule(model.parts.paths.blocks)

    def write(hidden: torch.Tensor) -> None:
        for position in prompt.positions:
            there = hidden[0, position]
            matched = vector * there.norm() / vector.norm()
            hidden[0, position] = {"overwrite": vector, "norm_matched": matched, "add": there + matched}[prompt.write]

    def overwrite(_module: object, _args: object, output: object) -> object:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        write(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def overwrite_input(_module: object, args: tuple, kwargs: dict) -> tuple:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        write(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(overwrite_input, with_kwargs=True)
    else:
        handle = blocks[layer - 1].register_forward_hook(overwrite)
    try:
        with torch.no_grad():
            return model.module(torch.tensor([prompt.ids]), use_cache=False).logits[0, -1]
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_layers_are_those_of_transformers(kind: str) -> None:
    """Layers 0 to L - 1 are transformers' hidden states; its last one is normed, ours is not."""
    model = tiny.model(kind)
    ids = torch.tensor([PROMPT.ids])
    every = torch.arange(ids.shape[1])[None]
    ours = model.residuals(ids, torch.ones_like(ids), every, range(5))[:, 0]
    with torch.no_grad():
        theirs = model.module(ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(4):
        torch.testing.assert_close(ours[layer], theirs[layer][0], rtol=1e-4, atol=1e-4)


def some_residuals(model: LanguageModel) -> torch.Tensor:
    return torch.randn(7, model.d_model, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_some_tokens_alone_have_the_models_own_logits(kind: str) -> None:
    """Soft-caps, logit scales and biases included; the embeddings that share the head's matrix keep all of it."""
    model = tiny.model(kind)
    residuals, tokens = some_residuals(model), [5, 599, 0, 17, 17]
    whole = model.unembed(residuals)
    assert model._head_by_rows is not None
    torch.testing.assert_close(model.token_logits(residuals, tokens), whole[:, tokens], rtol=1e-4, atol=1e-4)
    assert torch.equal(model.unembed(residuals), whole)


class CountsItsVocabulary(LlamaForCausalLM):
    """A head that cannot be applied to some tokens alone, and does not fail when it is."""

    def forward(self, *args: object, **kwargs: object) -> object:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits - out.logits.mean(-1, keepdim=True)
        return out


class AddsToItsVocabulary(LlamaForCausalLM):
    """A head that cannot be applied to some tokens alone, and fails when it is."""

    def forward(self, *args: object, **kwargs: object) -> object:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(-1, 1, self.config.vocab_size)
        return out


@pytest.mark.parametrize("kind", [CountsItsVocabulary, AddsToItsVocabulary])
def test_a_head_that_needs_its_vocabulary_gets_it(kind: type) -> None:
    model = LanguageModel(kind(tiny.module("llama").config).eval(), Tokens(tiny.tokenizer()), "m")
    residuals = some_residuals(model)
    assert model._head_by_rows is None
    assert torch.equal(model.token_logits(residuals, [5, 17]), model.unembed(residuals)[:, [5, 17]])


def test_the_likeliest_tokens_are_those_of_a_sort() -> None:
    model = tiny.model("llama")
    residuals = some_residuals(model)
    scores = model.score_tokens(residuals, [5, 17], top_k=3)
    logits = model.unembed(residuals)
    assert torch.equal(scores.top, logits.argsort(1, descending=True)[:, :3])
    assert torch.equal(model.score_tokens(residuals, scores.top[0].tolist()).ranks[0], torch.arange(3))
    assert model.score_tokens(residuals, [5]).rows(torch.tensor([1, 1])).top.shape == (2, 0)


def test_user_given_paths_are_taken() -> None:
    model = LanguageModel(
        tiny.module("llama"), Tokens(tiny.tokenizer()), "named", ModulePaths("model.layers", "model.norm")
    )
    assert model.parts.paths == ModulePaths("model.layers", "model.norm")


def test_wrong_paths_are_refused_in_one_line() -> None:
    tokens = Tokens(tiny.tokenizer())
    with pytest.raises(ArchitectureError, match=r"no module 'model\.blocks'"):
        LanguageModel(tiny.module("llama"), tokens, "m", ModulePaths("model.blocks", "model.norm"))
    with pytest.raises(ArchitectureError, match="ModuleList of blocks"):
        LanguageModel(tiny.module("llama"), tokens, "m", ModulePaths("model.norm", "model.norm"))
    with pytest.raises(ArchitectureError) as refused:
        LanguageModel(tiny.module("llama"), tokens, "m", ModulePaths("model.layers", "model.layers.3.mlp"))
    assert "\n" not in str(refused.value)
