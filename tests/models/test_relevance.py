"""The rules of relevance propagation: against a model written anew, and by what they conserve."""

import types

import pytest
import torch

from lensbench.errors import LensbenchError
from lensbench.inspectors.lenses.jacobian_lens import JacobianLens
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.jacobians import later_jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.relevance import relevance_rules
from lensbench.models.tokens import Tokens
from tests import tiny

PROMPT = tuple(range(20, 34))
EVERY = torch.arange(32)
UNKNOWN = {"mixtral": "no linear map is given its activation", "mamba": "0 activations, expected 1"}
KNOWN = [kind for kind in tiny.CONFIGS if kind not in UNKNOWN]
ATTENTION = ("o_proj", "out_proj", "attn.c_proj", "attention.dense", "attention.out_proj", "self_attn.dense")


def own(module: torch.nn.Module) -> LanguageModel:
    return LanguageModel(module, Tokens(tiny.tokenizer()), "own")


@pytest.mark.parametrize("kind", KNOWN)
def test_without_attention_and_biases_all_of_a_residual_is_carried_on(kind: str) -> None:
    """J h = h_L at each position: what is left is linear under the rules, and its shares add up."""
    module, silenced = tiny.module(kind), 0
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias") and "embed" not in name:
                weight.zero_()
            if any(f"{one}.weight" in name for one in ATTENTION):
                weight.zero_()
                silenced += 1
    assert silenced == 4
    model = own(module)
    ids = torch.tensor([PROMPT])
    hidden = model.residuals(ids, torch.ones_like(ids), torch.tensor([[9]]), range(5))[:, 0, 0]
    with relevance_rules(model):
        found = later_jacobian(model, PROMPT, torch.tensor([9]), EVERY, 4)
    for layer in range(4):
        torch.testing.assert_close(found[layer] @ hidden[layer], hidden[4], rtol=1e-4, atol=1e-4)
    plain = later_jacobian(model, PROMPT, torch.tensor([9]), EVERY, 4)
    assert not torch.allclose(plain[0] @ hidden[0], hidden[4], rtol=1e-2, atol=1e-2)


def test_it_is_the_derivative_of_a_model_with_constants_in_the_right_places() -> None:
    """Llama's norm and MLP written anew, with what counts as constant cut off from the graph; attention as it is."""
    expected = tiny.module("llama")

    def norm(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt().detach()

    def mlp(self, x):
        gate = self.gate_proj(x)
        product = gate * torch.sigmoid(gate).detach() * self.up_proj(x)
        return self.down_proj(product / 2 + product.detach() / 2)

    for block in expected.model.layers:
        block.mlp.forward = types.MethodType(mlp, block.mlp)
        for one in (block.input_layernorm, block.post_attention_layernorm):
            one.forward = types.MethodType(norm, one)
    model, places = tiny.model("llama"), torch.arange(5, 12)
    with relevance_rules(model):
        found = later_jacobian(model, PROMPT, places, EVERY, 4)
    torch.testing.assert_close(found, later_jacobian(own(expected), PROMPT, places, EVERY, 4), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, later_jacobian(model, PROMPT, places, EVERY, 4), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KNOWN)
def test_what_passes_compute_stays_as_it_is(kind: str) -> None:
    model, ids = tiny.model(kind), torch.tensor([PROMPT])
    with torch.no_grad():
        before = model.module(ids).logits
        with relevance_rules(model):
            assert torch.equal(model.module(ids).logits, before)
        assert torch.equal(model.module(ids).logits, before)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_other_blocks_are_refused_in_one_line(kind: str) -> None:
    model = tiny.model(kind)
    with pytest.raises(LensbenchError, match=UNKNOWN[kind]) as error:
        JacobianLens("relevance").check(Target(model), model)
    assert "\n" not in str(error.value)


def test_the_lens_is_fitted_under_the_rules() -> None:
    from lensbench.inspectors.evidence import Training

    model = tiny.model("llama")
    corpus = Corpus(model)
    lens = JacobianLens("relevance", prompts=2, rows=32)
    lens.check(Target(model), model)
    lens.fit(Target(model), model, Training(corpus=corpus))
    with relevance_rules(model):
        expected = torch.stack([corpus.later_jacobian(one, EVERY, 4) for one in corpus.prompts(2, 0)]).mean(0)
    torch.testing.assert_close(lens.weight_, expected, rtol=1e-4, atol=1e-5)
