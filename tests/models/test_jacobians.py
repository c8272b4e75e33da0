"""The model's Jacobians against automatic differentiation and finite differences of plain hooks on transformers."""

import pytest
import torch

from lensbench.errors import LensbenchError
from lensbench.models.corpus import Corpus
from lensbench.models.jacobians import Jacobian, jacobian, later_jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.tokens import Tokens
from tests import tiny

IDS = tuple(range(20, 31))
LAST = len(IDS) - 1
KINDS = [*tiny.CONFIGS, *tiny.HYBRIDS]
# Of the largest number, in float64; some architectures compute attention or norms in float32 all the same.
TOLERANCE = 1e-6


def precise(kind: str) -> LanguageModel:
    if kind == "mixtral":  # its experts are multiplied in float32 at most
        return tiny.model(kind)
    return LanguageModel(tiny.module(kind).double(), Tokens(tiny.tokenizer()), f"tiny-{kind}")


def ends(model: LanguageModel, ids: tuple[int, ...], position: int, layer: int):
    """Return h_L(last) as a function of h_l(position): one whole pass of transformers, blocks named by their path."""
    module, paths = model.module, model.parts.paths
    places = [*module.get_submodule(paths.blocks), module.get_submodule(paths.norm)]
    seen: list[torch.Tensor] = []

    def run(vector: torch.Tensor | None) -> torch.Tensor:
        def put(_module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if vector is None:
                seen[:] = [hidden[0, position].detach()]
                return None
            hidden = torch.cat([hidden[:, :position], vector[None, None], hidden[:, position + 1 :]], dim=1)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        def end(_module, args, kwargs):
            last.append((args[0] if args else next(iter(kwargs.values())))[0, -1])

        last: list[torch.Tensor] = []
        handles = [places[layer].register_forward_pre_hook(put, with_kwargs=True)]
        handles.append(places[-1].register_forward_pre_hook(end, with_kwargs=True))
        try:
            module(torch.tensor([ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return last[0]

    end = run(None).detach()
    return run, seen[0], end


def compare(found: Jacobian, model: LanguageModel, position: int) -> None:
    tolerance = TOLERANCE if model.dtype == torch.float64 else 20 * TOLERANCE
    for layer in range(model.n_layers + 1):
        run, start, end = ends(model, IDS, position, layer)
        expected = torch.autograd.functional.jacobian(run, start)
        size = max(1.0, float(expected.abs().max()))
        assert float((found.weight[layer] - expected).abs().max()) < tolerance * size, f"layer {layer}"
        torch.testing.assert_close(found.start[layer], start, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.end, end, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("position", [4, LAST], ids=["inside", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_differentiation(kind: str, position: int) -> None:
    model = precise(kind)
    compare(jacobian(model, IDS, position, "shared" if kind in tiny.CONFIGS else "plain"), model, position)


@pytest.mark.parametrize("mode", ["shared", "layer_start", "plain", None])
def test_modes_agree_from_the_first_position_on(mode) -> None:
    model = precise("gemma3_text")
    for position in (0, 1):
        compare(jacobian(model, IDS, position, mode), model, position)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "falcon"])
def test_equals_finite_differences(kind: str) -> None:
    """Without automatic differentiation: a central difference along a random direction, at every layer.

    Of architectures that compute in float64 throughout: in float32 nothing is left of small differences.
    """
    model = precise(kind)
    found = jacobian(model, IDS, 4)
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in range(model.n_layers + 1):
        run, start, _ = ends(model, IDS, 4, layer)
        step = 1e-5 * float(start.abs().mean())
        with torch.no_grad():
            difference = (run(start + step * direction) - run(start - step * direction)) / (2 * step)
        expected = found.weight[layer] @ direction
        assert float((difference - expected).abs().max()) < 1e-7 * max(1.0, float(expected.abs().max()))


def test_the_last_layer_is_the_identity_at_the_end_and_nothing_before() -> None:
    model = tiny.model("qwen3")
    torch.testing.assert_close(jacobian(model, IDS, LAST).weight[-1], torch.eye(model.d_model), rtol=0, atol=0)
    assert not jacobian(model, IDS, 4).weight[-1].any()
    assert jacobian(model, IDS, 4).weight[0].any()


def test_no_gradient_is_left_behind() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        found = jacobian(model, IDS, 4)
    assert not found.weight.requires_grad
    assert not found.start.requires_grad
    assert all(parameter.grad is None for parameter in model.module.parameters())


class Foreign(torch.autograd.Function):
    """An operation that vmap refuses: it looks at the numbers themselves."""

    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(gradient.numpy() * 2.0)


def test_an_operation_without_a_vmap_rule_is_differentiated_seed_by_seed() -> None:
    model = precise("llama")
    handle = model.parts.blocks[2].mlp.register_forward_hook(lambda _m, _a, out: Foreign.apply(out))
    try:
        compare(jacobian(model, IDS, 4, "shared"), model, 4)
    finally:
        handle.remove()


def test_small_batches_of_seeds_give_the_same() -> None:
    whole = jacobian(tiny.model("llama"), IDS, 4)
    other = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "other")
    other.budget.bytes = 40 * other.token_bytes
    torch.testing.assert_close(jacobian(other, IDS, 4).weight, whole.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", [-1, len(IDS)])
def test_a_position_outside_is_refused(position: int) -> None:
    with pytest.raises(LensbenchError, match="of a text of 11 tokens; choose one from 0 to 10"):
        jacobian(tiny.model("llama"), IDS, position)


# Of this and all later positions


PROMPT, PLACES = tuple(range(20, 38)), torch.arange(11, 17)


def stream(model: LanguageModel, ids: tuple[int, ...], moved: int | None = None, move: torch.Tensor | None = None):
    """Return transformers' own residuals at every layer, in one graph; at one layer some are moved at `PLACES`."""
    module, paths, seen = model.module, model.parts.paths, []
    places = [*module.get_submodule(paths.blocks), module.get_submodule(paths.norm)]

    def put(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.detach().requires_grad_(True) if not seen else hidden
        if len(seen) == moved:
            hidden = hidden.index_add(1, PLACES, move.expand(1, len(PLACES), -1))
        seen.append(hidden)
        hidden = hidden.clone()
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handles = [place.register_forward_pre_hook(put, with_kwargs=True) for place in places]
    try:
        module(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_later_positions_are_summed_and_these_averaged(kind: str) -> None:
    """Against one derivative at a time, p' < p left out, where there is none; for the last layer and one before it."""
    model, rows = precise(kind), torch.tensor([5, 0, 31])
    hidden = stream(model, PROMPT)
    for target in (4, 2):
        found = later_jacobian(model, PROMPT, PLACES, rows, target)
        assert found.shape == (target, 3, 32)
        for layer in range(target):
            expected = torch.zeros(3, 32, dtype=found.dtype)
            for k, row in enumerate(rows):
                for later in PLACES:
                    (one,) = torch.autograd.grad(hidden[target][0, later, row], hidden[layer], retain_graph=True)
                    assert not one[0, later + 1 :].any()
                    expected[k] += one[0, PLACES[0] : later + 1].sum(0) / len(PLACES)
            tolerance = TOLERANCE if kind in tiny.CONFIGS and kind != "mixtral" else 20 * TOLERANCE
            off = float((found[layer] - expected).abs().max())
            assert off < tolerance * max(1.0, float(expected.abs().max())), f"layer {layer}"


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "falcon"])
def test_moving_all_positions_moves_their_sum(kind: str) -> None:
    """Two passes: d/dε Σ h_L(p') = |V| J v, where εv is added at every p of V."""
    model = precise(kind)
    found = later_jacobian(model, PROMPT, PLACES, torch.arange(32), 4)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in range(4):
        with torch.no_grad():
            plus, minus = (stream(model, PROMPT, layer, sign * 1e-5 * direction)[4][0, PLACES] for sign in (1, -1))
        expected = len(PLACES) * found[layer] @ direction
        torch.testing.assert_close((plus - minus).sum(0) / 2e-5, expected, rtol=1e-4, atol=1e-4)


def test_of_blocks_that_add_nothing_it_is_the_identity() -> None:
    module = tiny.module("llama")
    for block in module.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "still")
    found = later_jacobian(model, PROMPT, PLACES, torch.arange(32), 4)
    torch.testing.assert_close(found, torch.eye(32).expand(4, -1, -1))


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_windows_and_begin_as_the_tokenizer_begins(bos: bool) -> None:
    model = tiny.model("llama", bos=bos)
    corpus = Corpus(model)
    prompts = corpus.prompts(5, seed=0)
    assert prompts.shape == (5, 128)
    assert torch.equal(prompts, corpus.prompts(8, seed=0)[:5])
    assert not torch.equal(prompts, corpus.prompts(5, seed=1))
    windows = {tuple(row[: 128 - bos].tolist()) for row in corpus.windows}
    assert all(tuple(row[bos:].tolist()) in windows for row in prompts)
    assert (prompts[:, 0] == 0).all() or not bos
    found = corpus.later_jacobian(prompts[0], torch.tensor([7]), 3)
    assert corpus.spent.tokens == 128
    expected = later_jacobian(model, tuple(prompts[0].tolist()), torch.arange(16, 127), torch.tensor([7]), 3)
    torch.testing.assert_close(found, expected)
    with pytest.raises(LensbenchError, match="corpus tokens were asked for"):
        corpus.prompts(10**6, seed=0)


def test_contexts_end_at_positions_of_the_corpus() -> None:
    model = tiny.model("llama")
    corpus = Corpus(model)
    contexts = corpus.contexts(40, seed=0)
    assert contexts[:7] == corpus.contexts(7, seed=0)
    assert contexts != corpus.contexts(40, seed=1)
    assert len(set(contexts)) == 40
    assert all(2 <= len(one) <= 128 for one in contexts)
    rows = {tuple(row[:2].tolist()) for row in corpus.windows}
    assert all(one[:2] in rows for one in contexts)
    assert corpus.spent.tokens == 0
    found = corpus.jacobian(contexts[0])
    assert corpus.spent.tokens == len(contexts[0])
    torch.testing.assert_close(found, jacobian(model, contexts[0], len(contexts[0]) - 1).weight[:-1])
    some = torch.tensor([9, 2])
    torch.testing.assert_close(corpus.jacobian(contexts[0], some), found[:, some])
    with pytest.raises(LensbenchError, match="corpus positions were asked for"):
        corpus.contexts(10**9, seed=0)


@pytest.mark.model
def test_of_a_real_model_predicts_small_moves(smollm2_folder) -> None:
    """Inside a prompt: a small move of the subject's residual moves the end as the Jacobian says."""
    model = load_model(str(smollm2_folder))
    ids = model.tokens.encode("The capital of France is").ids
    found = jacobian(model, ids, 3, "shared")
    for layer in (2, 15, 29):
        run, start, end = ends(model, ids, 3, layer)
        move = 1e-2 * start.norm() * torch.nn.functional.normalize(torch.randn(576), dim=0)
        with torch.no_grad():
            moved = (run(start + move) - run(start - move)) / 2
        expected = found.weight[layer] @ move
        assert float((moved - expected).norm()) < 0.05 * float(expected.norm())
    torch.testing.assert_close(found.end, end, rtol=1e-4, atol=1e-2)


@pytest.mark.model
def test_of_a_real_model_all_positions_move_their_sum(smollm2_folder) -> None:
    """Two passes of transformers for some rows: what a small move at every position of V does to the sum over V."""
    model = load_model(str(smollm2_folder))
    prompt = tuple(Corpus(model).prompts(1, seed=0)[0, : PLACES[-1] + 2].tolist())
    rows = torch.tensor([3, 100, 575])
    found = later_jacobian(model, prompt, PLACES, rows, 30)
    hidden = stream(model, prompt)
    for layer in (2, 15, 29):
        scale = 1e-2 * hidden[layer].detach()[0, PLACES].norm(dim=1).mean()
        move = scale * torch.nn.functional.normalize(found[layer].sum(0), dim=0)
        with torch.no_grad():
            plus, minus = (stream(model, prompt, layer, sign * move)[-1][0, PLACES] for sign in (1, -1))
        moved = (plus - minus)[:, rows].sum(0) / 2
        expected = len(PLACES) * found[layer] @ move
        assert float((moved - expected).norm()) < 0.05 * float(expected.norm()), f"layer {layer}"
