"""Direct logit attribution: its parts add up to the logit, and each is what the definition says."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from lensbench import testing
from lensbench.errors import NotApplicableError, TokenError, UsageError
from lensbench.explore.attribution import attribute, top_neurons
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.attribution.logit_attribution import LogitAttribution
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.components import ComponentError
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.models.tokens import Tokens
from lensbench.tasks import load_task
from tests import tiny
from tests.models.test_components import KINDS, NO_NEURONS, model_of, module_of

TEXT = "We talk about the old house and they say"
WORDS = ("tea", "wine", "house")
SUBJECTS = testing.Subjects(("Bo Ash", "Cy Birch", "Di Cole", "Ed Dow"), ("tea", "wine"))


def bench_of(kind: str) -> Bench:
    model = model_of(kind)
    return testing.make_bench(model, Corpus(model), SUBJECTS, (0, 1, 2, 3, 4))


def scored(kind: str, through: tuple[tuple[int, int], ...] = ()) -> tuple[Bench, Scores]:
    bench = bench_of(kind)
    return bench, CrossFit(lambda: LogitAttribution(through), bench).scores()


def of(scores: Scores, attempt: str) -> Tensor:
    """One attempt: [layer, item, answer]."""
    return scores.log_scores[:, scores.attempts.index(attempt)]


def logits_of(model: LanguageModel, text: str) -> Tensor:
    """The model's own logits after a text, its soft-cap undone."""
    with torch.no_grad():
        logits = model.module(torch.tensor([model.tokens.encode(text).ids])).logits[0, -1].double()
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    return cap * torch.atanh(logits / cap) if cap else logits


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_logit(kind: str) -> None:
    model = model_of(kind)
    table = attribute(model, TEXT, WORDS)
    expected = logits_of(model, TEXT)[[model.tokens.answer_token(word) for word in WORDS]]
    found = table.groupby("token", sort=False).logit.sum()
    assert list(found.index) == list(WORDS)
    assert found.to_numpy() == pytest.approx(expected.numpy(), abs=1e-4 * max(1.0, float(expected.abs().max())))
    parts = {"attention"} if kind == "mamba" else {"head", "head_bias", "mlp"}
    assert set(table.component) == {"embedding", "norm_bias", "unembedding_bias", *parts}
    assert len(table) == len(WORDS) * (3 + 4 * (1 if kind == "mamba" else 4 + 2))


@pytest.mark.parametrize("kind", KINDS)
def test_attempts_are_the_rows_of_the_table(kind: str) -> None:
    """The inspector reads what heads and neurons hold; the table, what they add."""
    bench, scores = scored(kind)
    heads = () if kind == "mamba" else ("attention", "mlp", "head=0", "head=1", "head=2", "head=3")
    neuron = () if kind in NO_NEURONS else ("neuron",)
    assert scores.attempts == ("block", *heads, *neuron, *(("next_heads",) if heads else ()))
    for i, item in enumerate(bench.items[:2]):
        ids = bench.context.model.tokens.encode(item.source)
        until = item.source[: ids.offsets[bench.context.model.tokens.locate(ids, item.subject_span)][1]]
        table = attribute(bench.context.model, until, bench.answers)
        inside = table[table.component.isin({"embedding", "head", "head_bias", "attention", "mlp"})]
        wanted = {"block": inside, "mlp": inside[inside.component == "mlp"]}
        wanted["attention"] = inside[inside.component.isin({"head", "head_bias"})]
        wanted |= {f"head={head}": inside[inside["head"] == head] for head in range(4)}
        scale = float(inside.logit.abs().max())
        for attempt in {"block", *heads}:
            rows = wanted[attempt].groupby(["token", "layer"]).logit.sum()
            for layer in range(5):
                expected = [float(rows.get((answer, layer), 0.0)) for answer in bench.answers]
                assert of(scores, attempt)[layer, i].numpy() == pytest.approx(expected, abs=1e-5 * scale)


class Naive:
    """A tiny Llama with hooks of its own, and its weights by name."""

    def __init__(self, model: LanguageModel, text: str, words: tuple[str, ...]) -> None:
        self.layers, module = model.module.model.layers, model.module
        self.ids = torch.tensor([model.tokens.encode(text).ids])
        self.handed: list[Tensor] = []
        self.neurons: list[Tensor] = []
        self.stream: list[Tensor] = []
        hooks = [module.model.norm.register_forward_pre_hook(lambda _m, args: self.stream.append(args[0][0, -1]))]
        for layer in self.layers:
            hooks += [
                layer.register_forward_pre_hook(lambda _m, args: self.stream.append(args[0][0, -1])),
                layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: self.handed.append(args[0][0, -1])),
                layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: self.neurons.append(args[0][0, -1])),
            ]
        with torch.no_grad():
            module(self.ids)
        for hook in hooks:
            hook.remove()
        rows = module.lm_head.weight[[model.tokens.answer_token(word) for word in words]]
        sigma = (self.stream[-1].square().mean() + module.config.rms_norm_eps).sqrt()
        self.reading = rows * module.model.norm.weight / sigma  # [word, d_model]

    def head(self, layer: int, head: int) -> Tensor:
        mixed = self.layers[layer - 1].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8]
        return self.reading @ (mixed @ self.handed[layer - 1][8 * head : 8 * head + 8])

    def neuron(self, layer: int) -> Tensor:
        columns = self.layers[layer - 1].mlp.down_proj.weight
        each = torch.stack(
            [self.reading @ (columns[:, n] * self.neurons[layer - 1][n]) for n in range(columns.shape[1])]
        )
        return each[each.std(1).argmax()]

    def mlp(self, layer: int) -> Tensor:
        own = self.layers[layer - 1].mlp.down_proj
        return self.reading @ (own.weight @ self.neurons[layer - 1])

    def through(self, layer: int, block: int, head: int) -> Tensor:
        """Two query heads share a key and a value head."""
        own, h = self.layers[block - 1], self.stream[layer]
        normed = h * own.input_layernorm.weight / (h.square().mean() + own.input_layernorm.variance_epsilon).sqrt()
        shared = head // 2
        value = own.self_attn.v_proj.weight[8 * shared : 8 * shared + 8] @ normed
        return self.reading @ (own.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] @ value)


def test_each_form_is_its_definition() -> None:
    through = ((3, 2), (4, 1), (1, 0))
    bench, scores = scored("llama", through)
    for i, item in enumerate(bench.items):
        naive = Naive(bench.context.model, item.source, bench.answers)
        expected: dict[tuple[str, int], Tensor] = {}
        for layer in range(1, 5):
            expected |= {(f"head={head}", layer): naive.head(layer, head) for head in range(4)}
            expected[("neuron", layer)] = naive.neuron(layer)
            expected[("mlp", layer)] = naive.mlp(layer)
            expected[("block", layer)] = naive.reading @ (naive.stream[layer] - naive.stream[layer - 1])
        for layer in range(4):
            expected[("next_heads", layer)] = sum(naive.through(layer, layer + 1, head) for head in range(4))
        expected[("block", 0)] = naive.reading @ naive.stream[0]
        for block, head in through:
            expected |= {
                (f"through={block}.{head}", layer): naive.through(layer, block, head) for layer in range(block)
            }
        for (attempt, layer), value in expected.items():
            torch.testing.assert_close(of(scores, attempt)[layer, i], value.detach(), rtol=1e-4, atol=1e-5)


def test_where_nothing_is_added_answers_tie() -> None:
    _, scores = scored("llama", ((2, 1),))
    assert not of(scores, "next_heads")[4].any()
    assert not of(scores, "through=2.1")[2:].any()
    assert of(scores, "through=2.1")[:2].any()
    for attempt in ("attention", "mlp", "head=0", "neuron"):
        assert not of(scores, attempt)[0].any()


@pytest.mark.parametrize("through", [(), ((2, 1), (4, 3))])
def test_conformance(through: tuple[tuple[int, int], ...]) -> None:
    assert len(testing.check_inspector(lambda: LogitAttribution(through))) >= 6


@pytest.mark.parametrize("through", [((5, 0),), ((0, 0),), ((2, 4),), ((1, -1),), ((2, 1), (1, 9))])
def test_heads_that_are_not_there_are_refused(through: tuple[tuple[int, int], ...]) -> None:
    model = model_of("llama")
    with pytest.raises(UsageError, match="tiny llama has layers 1 to 4, heads 0 to 3"):
        LogitAttribution(through).check(Target(model), model)


def test_models_that_do_not_come_apart() -> None:
    mamba = model_of("mamba")
    with pytest.raises(UsageError, match=r"no attention heads were found.*leave it out"):
        LogitAttribution(((2, 1),)).check(Target(mamba), mamba)
    module = module_of("llama")
    module.model.layers[2].mlp = module.model.layers[1].mlp
    shared = LanguageModel(module, Tokens(tiny.tokenizer()), "shared")
    with pytest.raises(NotApplicableError, match="no two modules of block 2"):
        LogitAttribution().fit(Target(shared), shared, Training())


def test_top_neurons_are_the_largest_of_all() -> None:
    model = model_of("gpt2")
    table = top_neurons(model, TEXT, "wine", count=10**6)
    assert len(table) == 4 * 4 * 32
    assert table.logit.abs().is_monotonic_decreasing
    mlps = attribute(model, TEXT, ("wine",)).query("component == 'mlp'").set_index("layer").logit
    norm = model.module.transformer.ln_f
    h = model.residuals(*model.tokens.pad([model.tokens.encode(TEXT).ids]), torch.tensor([[-1]]), (4,))[0, 0, 0]
    row = (
        model.module.lm_head.weight[model.tokens.answer_token("wine")]
        * norm.weight
        / (h.var(correction=0) + norm.eps).sqrt()
    )
    for layer, logits in table.groupby("layer").logit:
        bias = model.module.transformer.h[layer - 1].mlp.c_proj.bias
        own = float((row - row.mean()) @ bias)
        assert logits.sum() == pytest.approx(mlps[layer] - own, rel=1e-4, abs=1e-5)
    pd.testing.assert_frame_equal(top_neurons(model, TEXT, "wine", count=3), table.head(3))


def test_what_cannot_be_attributed_is_refused() -> None:
    with pytest.raises(ComponentError, match="no single output map"):
        top_neurons(model_of("mixtral"), TEXT, "wine")
    with pytest.raises(TokenError, match="a longer text"):
        attribute(model_of("llama"), "a", WORDS)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> LanguageModel:
    return load_model(str(smollm2_folder), Loading(dtype="float32"))


@pytest.mark.model
def test_a_real_model_adds_up_and_its_late_mlps_say_the_capital(smollm2: LanguageModel) -> None:
    text, words = "The capital of France is", ("Paris", "Berlin", "Rome")
    table = attribute(smollm2, text, words)
    expected = logits_of(smollm2, text)[[smollm2.tokens.answer_token(word) for word in words]]
    assert table.groupby("token", sort=False).logit.sum().to_numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    by_word = table.pivot_table(index=["layer", "component"], columns="token", values="logit", aggfunc="sum")
    gain = (by_word.Paris - by_word[["Berlin", "Rome"]].mean(axis=1)).groupby("layer").sum()
    # What tells the capital from others is written in the last third; where one looks up nothing, nothing is.
    assert gain.loc[21:].sum() > 2 * abs(gain.loc[:20].sum())


@pytest.mark.model
def test_one_attention_of_a_real_model_brings_the_capital(smollm2: LanguageModel) -> None:
    """The logit lens jumps from chance to .64 from layer 23 to 24: it is that block's attention that says it."""
    task = load_task("attribute_extraction/country_capital")
    items = tuple(task.items("answer", "test", 32))
    bench = Bench(
        RunContext(smollm2, smollm2, Corpus(smollm2), (20, 24), seed=0), task.relations["country_capital"], items, ()
    )
    scores = CrossFit(LogitAttribution, bench).scores()

    def accuracy(attempt: str, layer: int) -> float:
        found = of(scores, attempt)[layer]
        found = found - found.mean(0)  # what an answer is given whatever is asked
        picked = [
            max(item.choices, key=lambda c: row[bench.answers.index(c)]) for item, row in zip(items, found, strict=True)
        ]
        return sum(item.answer == answer for item, answer in zip(items, picked, strict=True)) / len(items)

    assert accuracy("attention", 0) < 0.35
    assert accuracy("attention", 1) > 0.5
    assert accuracy("attention", 1) > accuracy("mlp", 1) + 0.2
