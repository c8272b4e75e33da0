"""The contracts of published verbalizers on real models: ids by hand, vectors written by hand, whole logits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lensbench.inspectors.verbalizers.nla_meta import NLAMeta
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS
from lensbench.inspectors.verbalizers.selfie_adapter import RECIPE, SoftToken
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.patching import Prompt, patcher_of

pytestmark = pytest.mark.model
QUESTION = "What is the capital of this?"
# The packaged Gemma is the pretrained model, whose file has no template: this one marks turns as its family does.
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.fixture(scope="module", params=["smollm2_folder", "gemma3_folder"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    made = load_model(str(request.getfixturevalue(request.param)))
    if "gemma" in request.param:
        made.tokens.tokenizer.chat_template = GEMMA_TURNS
    return made


def states_of(model: LanguageModel, count: int) -> tuple[Tensor, ...]:
    """Each layer's activations at the last tokens of a text, by a plain pass."""
    ids = model.tokens.tokenizer("I was told about Norway")["input_ids"]
    with torch.no_grad():
        found = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return tuple(one[0, -count:] for one in found)


def ids_of(model: LanguageModel, user: str) -> list[int]:
    turns = [{"role": "user", "content": user}]
    asked = model.tokens.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return list(asked["input_ids"])


def logits_after(
    model: LanguageModel, ids: list[int], places: list[int], vectors: Tensor, block: int, how: str
) -> Tensor:
    """The log-probabilities after a prompt of which one block's output is written over at some places, by a hook."""

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        changed, there = output.clone(), output[0, places]
        added = there + there.norm(dim=1, keepdim=True) * vectors / vectors.norm(dim=1, keepdim=True)
        changed[0, places] = added if how == "add" else vectors
        return changed

    handle = model.module.model.layers[block].register_forward_hook(hook)
    with torch.no_grad():
        found: Tensor = model.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    handle.remove()
    return found


def logits_of_embeddings(model: LanguageModel, ids: list[int], places: list[int], vector: Tensor) -> Tensor:
    """The same after a prompt of which the embeddings at some places are others: made by hand, as Gemma scales them."""
    scale = math.sqrt(model.d_model) if model.module.config.model_type.startswith("gemma") else 1.0
    rows = model.module.get_input_embeddings().weight.detach()[ids] * scale
    rows[places] = vector
    with torch.no_grad():
        found: Tensor = model.module(inputs_embeds=rows[None]).logits[0, -1].log_softmax(-1)
    return found


def require_same(model: LanguageModel, prompt: Prompt, vectors: Tensor, layer: int, expected: Tensor) -> None:
    asked = list(range(0, model.vocabulary, 997))
    found = patcher_of(model).score(prompt, vectors.flatten()[None], torch.tensor([layer]), asked)
    torch.testing.assert_close(found.log_probs[0], expected[asked], rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("layers", [(16,), (4, 8, 16)], ids=["one layer", "three layers"])
def test_activation_oracle(layers: tuple[int, ...], model: LanguageModel) -> None:
    states = states_of(model, 4)
    user = "".join(f"Layer: {layer - 1}\n ? ? ? ? \n" for layer in layers) + QUESTION
    ids, mark = ids_of(model, user), model.tokens.tokenizer(" a ?", add_special_tokens=False)["input_ids"][-1]
    places = [i for i, token in enumerate(ids) if token == mark]
    assert len(places) == 4 * len(layers)
    prompt = CONVENTIONS["activation_oracle"].make(model, "What is the capital of {subject}?", layers, 4)
    assert list(prompt.ids) == ids
    assert list(prompt.positions) == places
    vectors = torch.cat([states[layer] for layer in layers])
    require_same(model, prompt, vectors, 2, logits_after(model, ids, places, vectors, 1, "add"))


def test_latentqa(model: LanguageModel) -> None:
    tokenizer, vectors = model.tokens.tokenizer, states_of(model, 4)[16]
    turns = [
        {"role": "user", "content": "? ? ? "},
        {"role": "reflect", "content": "Sure, I've analyzed the assistant."},
        {"role": "user", "content": QUESTION},
    ]
    opened = "<start_of_turn>reflect\n" if "start_of_turn" in tokenizer.chat_template else "<|im_start|>reflect\n"
    written = tokenizer.apply_chat_template(turns, tokenize=False) + opened
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    first = ids.index(tokenizer("\n?", add_special_tokens=False)["input_ids"][-1])
    places = list(range(first, first + 4))
    prompt = CONVENTIONS["latentqa"].make(model, "What is the capital of {subject}?", (16,), 4)
    assert list(prompt.ids) == ids
    assert list(prompt.positions) == places
    require_same(model, prompt, vectors, 1, logits_after(model, ids, places, vectors, 0, "overwrite"))


def test_selfie_adapter(model: LanguageModel) -> None:
    tokenizer, x = model.tokens.tokenizer, states_of(model, 1)[16][0]
    generator = torch.Generator().manual_seed(0)
    weights = {"log_scale": torch.tensor([1.5]), "bias": torch.randn(model.d_model, generator=generator)}
    soft = SoftToken("scalar_affine", weights)(x[None])
    expected = math.exp(1.5) * x / (x.norm() + 1e-8) + weights["bias"]
    torch.testing.assert_close(soft[0], expected)
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": 'What is the meaning of "X"?'}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(written + 'The meaning of "X" is "', add_special_tokens=False)["input_ids"]
    mark = tokenizer('"X"', add_special_tokens=False)["input_ids"][1]
    places = [i for i, token in enumerate(ids) if token == mark]
    assert len(places) == 2
    prompt = RECIPE.make(model, "", (0,))
    assert list(prompt.ids) == ids
    assert list(prompt.positions) == places
    require_same(model, prompt, soft, 0, logits_of_embeddings(model, ids, places, expected))


def test_autoencoder(model: LanguageModel) -> None:
    """The embedding of the mark is replaced at the sidecar's length; where embeddings are multiplied, after that."""
    tokenizer, x, length = model.tokens.tokenizer, states_of(model, 1)[16][0], 60.0
    gemma = "start_of_turn" in tokenizer.chat_template
    mark = "<unused7>" if gemma else "<empty_output>"
    text = "Explain <concept>{injection_char}</concept> in a sentence."
    ids = ids_of(model, text.replace("{injection_char}", mark))
    place = ids.index(tokenizer.convert_tokens_to_ids(mark))
    meta = NLAMeta("av", model.d_model, 15, text, length, mark, (ids[place], ids[place - 1], ids[place + 1]))
    prompt = meta.prompt(model)
    assert list(prompt.ids) == ids
    assert prompt.positions == (place,)
    vector = length * x / x.norm()
    require_same(model, prompt, vector, 0, logits_of_embeddings(model, ids, [place], vector))
