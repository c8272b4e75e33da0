"""Patched passes in batches, memory that runs out, and generation from patched states."""

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Budget, bytes_per_row
from lensbench.models.patching import PatchedPass, Patcher, Prompt
from lensbench.models.patching.generation import SHARINGS, Generation, deviation
from lensbench.models.patching.patcher import PROMPTS, SHARE_KEPT
from lensbench.models.tokens import Tokens
from tests import tiny

PROMPT = Prompt(tuple(range(20, 31)), 6)
STEPS = 6
FULL = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"


def rows(model: LanguageModel, number: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(number, model.d_model, generator=torch.Generator().manual_seed(1)) * 3
    return vectors, torch.arange(number) % (model.n_layers + 1)


def naive_generation(model: LanguageModel, vector: torch.Tensor, layer: int, steps: int) -> list[int]:
    """Whole forward passes on transformers alone; the prompt's place is overwritten in each of them."""
    blocks = [*model.module.get_submodule(model.parts.paths.blocks), model.parts.final]
    ids = list(PROMPT.ids)

    def overwrite(_module: object, args: tuple, kwargs: dict) -> tuple:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, PROMPT.position] = vector
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = blocks[layer].register_forward_pre_hook(overwrite, with_kwargs=True)
    try:
        with torch.no_grad():
            for _ in range(steps):
                ids.append(int(model.module(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    finally:
        handle.remove()
    return ids[len(PROMPT.ids) :]


def generation(model: LanguageModel, sharing: str) -> Generation:
    return Generation(PatchedPass(model, PROMPT, "shared" if sharing == "shared" else "plain"), sharing)


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_generation_equals_naive_hooks(kind: str, sharing: str) -> None:
    model = tiny.model(kind)
    vectors, layers = rows(model)
    order = layers.argsort(stable=True)
    tokens = generation(model, sharing).generate(vectors[order], layers[order].tolist(), STEPS)
    ends = set(model.end_ids)
    for place, row in zip(order.tolist(), tokens.tolist(), strict=True):
        naive = naive_generation(model, vectors[place], int(layers[place]), STEPS)
        length = next((i for i, token in enumerate(naive) if token in ends), STEPS)
        assert row[:length] == naive[:length]


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_generation_shares_the_prefix(kind: str) -> None:
    assert deviation(PatchedPass(tiny.model(kind), PROMPT, "shared"), "shared") < 5e-4


@pytest.mark.parametrize("kind", tiny.HYBRIDS)
def test_hybrids_generate_too(kind: str) -> None:
    model = tiny.model(kind)
    vectors, layers = rows(model)
    patcher = Patcher(model)
    texts = patcher.generate(PROMPT, vectors, layers, STEPS)
    assert patcher.sharing in ("cached", "plain")
    naive = [naive_generation(model, v, int(layer), STEPS) for v, layer in zip(vectors, layers, strict=True)]
    assert texts == tuple(model.tokens.decode(tokens, model.end_ids) for tokens in naive)


def test_the_patch_acts_on_the_prompt_only() -> None:
    """Generated tokens are run unpatched: going on from the patched prompt's own keys and values gives the same."""
    model = tiny.model("llama")
    vectors, _ = rows(model, 1)
    passes = PatchedPass(model, PROMPT, "plain")
    with torch.no_grad():
        out = passes.hooked(passes.ids, vectors, [2], use_cache=True)
        expected, cache = [out.logits[0, -1].argmax()], out.past_key_values
        for _ in range(STEPS - 1):
            out = model.module(expected[-1].view(1, 1), past_key_values=cache, use_cache=True)
            expected.append(out.logits[0, -1].argmax())
    for sharing in SHARINGS:
        assert generation(model, sharing).generate(vectors, [2], STEPS)[0].tolist() == [int(t) for t in expected]


def test_generation_does_not_depend_on_batches_or_order() -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    vectors, layers = rows(model, 24)
    whole = Patcher(model).generate(PROMPT, vectors, layers, STEPS)
    model.budget = Budget(1, model.device)
    one_by_one = Patcher(model)
    assert one_by_one.generate(PROMPT, vectors, layers, STEPS) == whole
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert Patcher(model).generate(PROMPT, vectors[order], layers[order], STEPS) == tuple(whole[i] for i in order)


@given(st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_batches_cover_every_row_once(total: int, size: int) -> None:
    seen = Budget(1, torch.device("cpu")).in_batches(total, lambda _: size, lambda rows: list(range(total))[rows])
    assert [row for part in seen for row in part] == list(range(total))


@given(st.integers(1, 40), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_what_does_not_fit_is_halved_and_nothing_is_lost(total: int, fits: int) -> None:
    budget = Budget(64, torch.device("cpu"))

    def run(rows: slice) -> list[int]:
        if rows.stop - rows.start > fits:
            raise RuntimeError(FULL)
        return list(range(rows.start, rows.stop))

    parts = budget.in_batches(total, lambda _: budget.rows(1), run)
    assert [row for part in parts for row in part] == list(range(total))
    assert budget.bytes <= 64
    assert budget.bytes >= min(64, fits) // 2


def test_other_errors_and_single_rows_are_raised() -> None:
    budget = Budget(8, torch.device("cpu"))

    def fail(message: str) -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="something else"):
        budget.in_batches(4, lambda _: 4, lambda _: fail("something else"))
    with pytest.raises(RuntimeError, match="can't allocate"):
        budget.in_batches(4, lambda _: budget.rows(1), lambda _: fail(FULL))


def test_a_pass_that_runs_out_of_memory_goes_on_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    vectors, layers = rows(model, 40)
    expected = PatchedPass(model, PROMPT, "shared").final_residuals(vectors, layers)
    original, sizes = PatchedPass.run, []

    def run(self: PatchedPass, vectors: torch.Tensor, layers: list[int]) -> torch.Tensor:
        sizes.append(len(vectors))
        if len(vectors) > 7:
            raise RuntimeError(FULL)
        return original(self, vectors, layers)

    monkeypatch.setattr(PatchedPass, "run", run)
    got = PatchedPass(model, PROMPT, "shared").final_residuals(vectors, layers)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert max(sizes[sizes.index(40) + 1 :]) < 40


def test_bytes_per_row_are_counted_whatever_the_allocator_does() -> None:
    weight = torch.zeros(16, 8)

    def run(rows: int) -> None:
        first = torch.zeros(rows, 16)  # 64 bytes a row
        second = first @ weight  # 32 more; a view of the weight counts nothing
        del first
        second.t().contiguous()  # 32 more, when the first are gone

    assert bytes_per_row(run) == 96


@pytest.mark.parametrize("mode", ["shared", "plain"])
def test_rows_per_batch_follow_the_budget(mode: str) -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    passes = PatchedPass(model, PROMPT, mode)
    model.budget = Budget(10 * passes.row_bytes, model.device)
    assert passes.rows_per_batch == 10


def test_a_model_spread_over_devices_gives_the_same(tmp_path: Path) -> None:
    """Weights that accelerate loads when they are needed, as `--device-map auto` does where GPUs do not suffice."""
    whole = tiny.model("llama")
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    module = dispatch_model(
        tiny.module("llama"), device_map=places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    spread = LanguageModel(module, Tokens(tiny.tokenizer()), "tiny-llama")
    assert any(parameter.is_meta for parameter in module.parameters())
    assert spread.fingerprint == whole.fingerprint
    vectors, layers = rows(whole)
    for sharing in ("score", "generate"):
        one, other = Patcher(whole), Patcher(spread)
        if sharing == "score":
            expected = one.score(PROMPT, vectors, layers, [5, 6, 7]).log_probs
            torch.testing.assert_close(other.score(PROMPT, vectors, layers, [5, 6, 7]).log_probs, expected)
        else:
            assert other.generate(PROMPT, vectors, layers, STEPS) == one.generate(PROMPT, vectors, layers, STEPS)
        assert (other.mode, other.sharing) == (one.mode, one.sharing)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_what_a_prompt_keeps_is_counted_and_prompts_go_when_it_is_too_much(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(kind)
    kept = PatchedPass(model, PROMPT, "shared")
    assert kept.nbytes == 0
    kept.run(*((one[:1] if i == 0 else one[:1].tolist()) for i, one in enumerate(rows(model))))
    layers = kept.prefix.layers
    held = sum(one.keys.nbytes + one.values.nbytes for one in layers) + kept.clean.hidden.nbytes
    held += sum(part.nbytes for added in kept.clean.added for part in added if isinstance(part, torch.Tensor))
    assert held <= kept.nbytes <= 6 * held

    prompts = [Prompt((*range(20 + i, 30 + i), 5), 6) for i in range(PROMPTS + 9)]
    for size, left in ((SHARE_KEPT * kept.nbytes, PROMPTS + 1), (SHARE_KEPT * 100 * kept.nbytes, len(prompts))):
        monkeypatch.setattr(model.budget, "bytes", size)
        patcher = Patcher(model, "shared")
        for prompt in prompts:
            patcher.score(prompt, *(one[:1] for one in rows(model)), [3, 4])
        assert len(patcher._passes) == left
