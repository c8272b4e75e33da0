"""Every architecture: structure found, layers read, patched passes equal to plain hooks on transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from lensbench.errors import LensbenchError
from lensbench.explore.doctor import examine
from lensbench.models.architecture import ArchitectureError, ModulePaths
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import enlarge, load_model
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


def mllama() -> LanguageModel:
    """A decoder two of whose blocks look at images alone, and are not called for text."""
    torch.manual_seed(0)
    text = {**tiny.CONFIGS["llama"], "cross_attention_layers": [1, 3]}
    module = MllamaForCausalLM(MllamaTextConfig(**text)).float().eval()
    enlarge(module)
    return LanguageModel(module, Tokens(tiny.tokenizer()), "tiny-mllama")


def test_the_stream_passes_by_a_block_that_is_not_called() -> None:
    model, ids = mllama(), torch.tensor([PROMPT.ids])
    assert model.parts.called == (True, False, True, False)
    read = model.text_residuals(ids, range(5))
    assert torch.equal(read[1], read[2])
    assert torch.equal(read[3], read[4])
    assert not torch.equal(read[2], read[3])
    assert [check for check in examine(model) if not check.passed] == []
    vectors = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(0)) * 3
    final = PatchedPass(model, PROMPT, fastest_mode(model, PROMPT)).final_residuals(vectors, torch.arange(5))
    for layer, vector in enumerate(vectors):  # written where the next block that is called begins
        place = {0: 0, 1: 2, 2: 2, 3: 4, 4: 4}[layer]
        block = (*model.parts.blocks, model.parts.final)[place]
        handle = block.register_forward_pre_hook(written_at(PROMPT.positions[0], vector), with_kwargs=True)
        with torch.no_grad():
            naive = model.module(ids, use_cache=False).logits[0, -1]
        handle.remove()
        torch.testing.assert_close(model.unembed(final[layer : layer + 1])[0], naive, rtol=2e-4, atol=2e-4)


def written_at(position: int, vector: torch.Tensor):
    def hook(_module: object, args: tuple, kwargs: dict) -> tuple:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, position] = vector
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    return hook


@pytest.mark.parametrize(("kind", "why"), [("nanochat", "before the blocks as well"), ("openai-gpt", "no module of")])
def test_what_cannot_be_read_is_refused_by_name(kind: str, why: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    old = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 600}
    config = AutoConfig.for_model(kind, **(old if kind == "openai-gpt" else {**sizes, "vocab_size": 600}))
    module = AutoModelForCausalLM.from_config(config).float().eval()
    with pytest.raises(ArchitectureError, match=why) as told:
        LanguageModel(module, Tokens(tiny.tokenizer()), kind)
    assert "\n" not in str(told.value)


def test_the_decoder_inside_a_model_of_images_and_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4, "projection_dim": 16}  # fmt: skip
    text = {key: value for key, value in tiny.CONFIGS["llama"].items() if "token" not in key}
    config = LlavaConfig(
        text_config={"model_type": "llama", **text}, vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=599,
    )  # fmt: skip
    whole = LlavaForConditionalGeneration(config).float().eval()
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.n_layers == 4
    assert [check for check in examine(model) if not check.passed] == []
    ids = torch.tensor([PROMPT.ids])
    with torch.no_grad():
        torch.testing.assert_close(model.unembed(model.text_residuals(ids)[0])[-1], whole(ids).logits[0, -1])


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=600)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LensbenchError, match="is a T5, not a decoder of text"):
        load_model(str(tmp_path))


def test_an_encoder_with_a_head_for_words_is_refused_as_an_encoder(tmp_path: Path) -> None:
    """transformers would load it as a decoder, and look at the whole text at every token."""
    config = BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=600
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LensbenchError, match=r"is an encoder \(Bert\): every state has seen the whole text; lensbench"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "rwkv"])
def test_recurrent_models_count_their_hidden_states_from_the_first_block(kind: str) -> None:
    """As the FAQ says: entry i of transformers' hidden states is our layer i + 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=600, hidden_size=32, num_hidden_layers=3)
    module = AutoModelForCausalLM.from_config(config).float().eval()
    enlarge(module)
    model, ids = LanguageModel(module, Tokens(tiny.tokenizer()), kind), torch.tensor([PROMPT.ids])
    ours = model.text_residuals(ids, range(4))
    with torch.no_grad():
        theirs = module(ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in (1, 2):
        torch.testing.assert_close(ours[layer], theirs[layer - 1][0], rtol=1e-4, atol=1e-4)
