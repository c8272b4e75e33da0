"""Each probe against its definition, written out plainly, and against the conformance checks."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lensbench import evaluate, testing
from lensbench.baselines.readers import InputClassifier, Majority
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, SourceText, Training
from lensbench.inspectors.probes.linear_probe import LinearProbe
from lensbench.inspectors.probes.mass_mean import MassMeanProbe
from lensbench.inspectors.probes.mdl_probe import FRACTIONS, MdlProbe, blocks
from lensbench.inspectors.probes.mlp_probe import MlpProbe
from lensbench.inspectors.probes.probe import Probe
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import token_directions
from lensbench.models.tokens import Tokens
from lensbench.runs.run import Run
from tests import tiny

PROBES: dict[str, Callable[[], Inspector]] = {
    "linear_probe": LinearProbe,
    "mass_mean_probe": MassMeanProbe,
    "mass_mean_probe with covariance": lambda: MassMeanProbe(covariance=True),
    "mdl_probe": MdlProbe,
    "mlp_probe": MlpProbe,
}
TOKENS = [5, 599, 0, 17, 17]


def test_mass_mean_with_covariance_passes_the_checks() -> None:
    assert "check_folds_are_apart" in testing.check_inspector(PROBES["mass_mean_probe with covariance"])


# The directions of the head


def plain_head(model: LanguageModel, residuals: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    bias = getattr(model.module.get_output_embeddings(), "bias", None)
    with torch.no_grad():
        return model.parts.final(residuals) @ directions.T + (0 if bias is None else bias[TOKENS])


def some_residuals(model: LanguageModel) -> torch.Tensor:
    return torch.randn(7, model.d_model, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_directions_times_the_normed_residual_are_the_logits(kind: str) -> None:
    """Logit scales included; the soft-cap, which comes after, is taken out of the model for the comparison alone."""
    model = LanguageModel(tiny.module(kind), Tokens(tiny.tokenizer()), kind)
    directions = token_directions(model, TOKENS)
    residuals = some_residuals(model)
    if kind == "gemma2":
        capped = model.unembed(residuals)
        model.module.config.final_logit_softcapping = None
        assert not torch.allclose(model.unembed(residuals), capped, rtol=1e-3)
    expected = model.unembed(residuals)[:, TOKENS]
    torch.testing.assert_close(plain_head(model, residuals, directions), expected, rtol=1e-5, atol=1e-5)


class Packed(nn.Module):
    """A head without a weight of its own."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.codes = nn.Parameter((head.weight * 1e4).round().to(torch.int32), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.codes.T / 1e4)


def test_a_head_without_a_weight_has_directions() -> None:
    module = tiny.module("llama")
    module.lm_head = Packed(module.lm_head)
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "packed")
    residuals = some_residuals(model)
    found = plain_head(model, residuals, token_directions(model, TOKENS))
    torch.testing.assert_close(found, model.unembed(residuals)[:, TOKENS], rtol=1e-5, atol=1e-5)


def test_a_model_without_a_final_norm_has_directions_of_its_stream() -> None:
    """Through a projection that makes the stream narrower."""
    torch.manual_seed(0)
    settings = {**tiny.CONFIGS["opt"], "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **settings)).float()
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "opt")
    assert model.parts.paths.norm.endswith("project_out")
    residuals = some_residuals(model)
    found = residuals @ token_directions(model, TOKENS).T
    torch.testing.assert_close(found, model.unembed(residuals)[:, TOKENS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_directions_of_half_precision_are_float32_and_near(dtype: torch.dtype) -> None:
    half = LanguageModel(tiny.module("gemma2").to(dtype), Tokens(tiny.tokenizer()), "half")
    found, expected = token_directions(half, TOKENS), token_directions(tiny.model("gemma2"), TOKENS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_directions_leave_the_model_as_it_was() -> None:
    model = tiny.model("llama")
    residuals = some_residuals(model)
    before = model.unembed(residuals)
    first = token_directions(model, [3, 4])
    assert torch.equal(token_directions(model, [4, 3, 4]), first[[1, 0, 1]])
    assert torch.equal(model.unembed(residuals), before)
    assert all(parameter.grad is None for parameter in model.module.parameters())


# Made-up data


def trained(
    probe: Inspector, values: torch.Tensor, labels: list[str], answers: tuple[str, ...], groups: list[int] | None = None
) -> Inspector:
    """Fit a probe to these residuals of all layers; each item is a subject of its own, unless told."""
    model = tiny.model("llama")
    layers = tuple(range(len(values)))
    subjects = tuple(range(len(labels))) if groups is None else tuple(groups)
    training = Training(answers, subjects, lambda: Residuals(layers, values), None, tuple(labels))
    return probe.fit(Target(model), model, training)


def asked(probe: Inspector, values: torch.Tensor, answers: tuple[str, ...]) -> Scores:
    layers = tuple(range(len(values)))
    return probe.inspect(Evidence(answers, (answers,) * values.shape[1], layers, Residuals(layers, values)))


def clusters(items: int, width: int, seed: int = 0, layers: int = 2) -> tuple[torch.Tensor, list[str]]:
    """Residuals of three classes that lie apart, in coordinates of very unequal size."""
    rng = np.random.default_rng(seed)
    labels = np.arange(items) % 3
    centres = np.random.default_rng(99).normal(size=(layers, 3, width))
    noise = rng.normal(size=(layers, items, width)) * np.geomspace(3.0, 0.3, width)
    return torch.tensor(centres[:, labels] + noise).float(), [("a", "b", "c")[k] for k in labels]


ABC = ("a", "b", "c")


@pytest.mark.parametrize("name", ["probe", *PROBES])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    make = {**PROBES, "probe": Probe}[name]
    values, labels = clusters(36, 32)
    half = values.bfloat16()
    found, expected = (asked(trained(make(), one, labels, ABC), one, ABC).log_scores for one in (half, half.float()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert bool((found.argmax(-1)[:, 0] == torch.arange(36) % 3).float().mean() > 0.8)


@pytest.mark.parametrize("name", PROBES)
def test_equal_activations_tell_nothing(name: str) -> None:
    """As at layer 0 of prompts that end alike: answers that training has equally often stay alike."""
    values = torch.full((1, 36, 32), 7.3)
    scores = asked(trained(PROBES[name](), values, clusters(36, 4)[1], ABC), values[:, :2], ABC).log_scores
    torch.testing.assert_close(scores.exp(), torch.full((1, 1, 2, 3), 1 / 3), rtol=0, atol=0.02)


# Linear probe


def words(model: LanguageModel, count: int) -> tuple[str, ...]:
    """Return words that begin with different tokens."""
    first: dict[int, str] = {}
    for i in range(model.vocabulary):
        text = model.tokens.decode((i,)).strip()
        if text.isalpha() and text.isascii():
            first.setdefault(model.tokens.answer_token(text), text)
    assert len(first) >= count
    return tuple(sorted(first.values())[:count])


def test_a_linear_map_is_recovered_and_answers_that_training_lacks() -> None:
    """h = R u_a + c with a rotation R: W and b take h back to u_a, also for the half of the answers held back."""
    model = tiny.model("llama")
    answers = words(model, 120)
    directions = Target(model).answer_directions(answers).double()
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator).double()).Q
    away = torch.randn(32, generator=generator).double()
    values = (directions @ rotation.T + away)[None].float()
    fitted = trained(LinearProbe(penalties=(1e-8,)), values[:, :60], list(answers[:60]), answers)
    assert isinstance(fitted, LinearProbe)
    weight, bias = fitted.affine(0)
    np.testing.assert_allclose(weight, rotation.T.numpy(), atol=1e-4)
    np.testing.assert_allclose(bias, -(rotation.T @ away).numpy(), atol=1e-4)
    unseen = asked(fitted, values[:, 60:], answers).log_scores[0, 0]
    assert unseen.argmax(1).tolist() == list(range(60, 120))


def test_linear_probe_is_ridge_onto_the_rows_and_a_cosine() -> None:
    model = tiny.model("llama")
    answers = words(model, 6)
    rows = Target(model).answer_directions(answers).double().numpy()
    values, labels = clusters(60, 32)
    named = [answers["abc".index(label)] for label in labels]
    gold = np.array([answers.index(name) for name in named])
    fitted = trained(LinearProbe(penalties=(0.3,)), values, named, answers)
    assert isinstance(fitted, LinearProbe)
    unseen, _ = clusters(20, 32, seed=1)
    found = asked(fitted, unseen, answers).log_scores[:, 0]
    for layer in range(2):
        x = values[layer].double().numpy()
        plain = Ridge(alpha=0.3 * len(x) * x.var(0).mean()).fit(x, rows[gold])
        weight, bias = fitted.affine(layer)
        np.testing.assert_allclose(weight, plain.coef_, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(bias, plain.intercept_, rtol=1e-7, atol=1e-10)
        mean = rows[gold].mean(0)
        read = torch.tensor(plain.predict(unseen[layer].double().numpy()) - mean)
        cosines = torch.nn.functional.cosine_similarity(read[:, None], torch.tensor(rows - mean)[None], dim=2)
        expected = (fitted.maps_[layer].sharpness * cosines).log_softmax(1).float()
        torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-5)


def test_linear_probe_chooses_by_held_out_log_loss() -> None:
    """Penalty and sharpness are those that do best on held-out subjects, each tried alone."""
    answers = words(tiny.model("llama"), 3)
    values, labels = clusters(60, 32)
    named = [answers["abc".index(label)] for label in labels]
    penalties = (1e-6, 1.0, 1e6)
    chosen = trained(LinearProbe(penalties), values, named, answers)
    assert isinstance(chosen, LinearProbe)
    learn, choose = next(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(named, groups=range(60)))
    gold = torch.tensor([answers.index(named[i]) for i in choose])
    for layer in range(2):
        losses = {}
        for penalty in penalties:
            part = trained(LinearProbe((penalty,)), values[:, learn], [named[i] for i in learn], answers)
            assert isinstance(part, LinearProbe)
            cosines = part.maps_[layer].cosines(
                values[layer, choose].numpy(), part.directions_, part._directions(answers)
            )
            for sharpness in (1, 2, 4, 8, 16, 32, 64):
                found = torch.tensor(sharpness * cosines).log_softmax(1)
                losses[penalty, sharpness] = -float(found[torch.arange(len(gold)), gold].mean())
        best = min(losses, key=lambda key: losses[key])
        spread = float(values[layer].double().var(0, unbiased=False).mean())
        assert chosen.maps_[layer].ridge.alpha == pytest.approx(best[0] * 60 * spread, rel=1e-6)
        assert chosen.maps_[layer].sharpness == best[1]


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_linear_probe_reads_every_architecture(kind: str) -> None:
    model = tiny.model(kind)
    names = tuple(f"{first} {last}" for first in ("Bo", "Cy", "Di", "Ed", "Fay") for last in ("Ash", "Birch"))
    bench = testing.make_bench(model, Corpus(model), testing.Subjects(names, ("tea", "wine")), (0, 2, 4))
    scores = CrossFit(LinearProbe, bench).scores().log_scores
    assert scores.shape == (3, 1, 10, 2)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3, 1, 10))
    assert bool((scores[..., 0] - scores[..., 1]).std() > 1e-3)


def test_a_map_needs_subjects() -> None:
    values, labels = clusters(4, 8)
    with pytest.raises(NotApplicableError, match="there are 4 training subjects"):
        trained(LinearProbe(), values, labels, ABC)


# Mass mean


def two_classes() -> tuple[torch.Tensor, list[str], np.ndarray]:
    values, labels = clusters(30, 50)
    kept = [i for i, label in enumerate(labels) if label != "c"][:-3]  # not balanced
    return values[:, kept], [labels[i] for i in kept], np.array([labels[i] == "a" for i in kept])


def test_mass_mean_of_two_classes_is_the_papers_direction() -> None:
    """The log-odds are theta · (h - (mu_+ + mu_-) / 2)."""
    values, labels, is_a = two_classes()
    unseen, _ = clusters(9, 50, seed=1)
    found = asked(trained(MassMeanProbe(), values, labels, ("a", "b")), unseen, ("a", "b")).log_scores[:, 0]
    for layer in range(2):
        h = values[layer].double().numpy()
        plus, minus = h[is_a].mean(0), h[~is_a].mean(0)
        expected = (unseen[layer].double().numpy() - (plus + minus) / 2) @ (plus - minus)
        np.testing.assert_allclose(found[layer, :, 0] - found[layer, :, 1], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [10, 50], ids=["more items", "more coordinates"])
def test_mass_mean_with_covariance_is_the_papers_variant(width: int) -> None:
    """Theta · inverse covariance · (h - middle), the covariance that of the items about their own class's mean."""
    values, labels = clusters(30, width)
    unseen, _ = clusters(9, width, seed=1)
    found = asked(trained(MassMeanProbe(covariance=True), values, labels, ABC), unseen, ABC).log_scores[:, 0]
    place = np.array(["abc".index(label) for label in labels])
    for layer in range(2):
        h = values[layer].double().numpy()
        means = np.stack([h[place == k].mean(0) for k in range(3)])
        covariance = LedoitWolf(assume_centered=True).fit(h - means[place]).covariance_
        for one, other in ((0, 1), (0, 2), (1, 2)):
            theta = np.linalg.solve(covariance, means[one] - means[other])
            expected = (unseen[layer].double().numpy() - (means[one] + means[other]) / 2) @ theta
            np.testing.assert_allclose(found[layer, :, one] - found[layer, :, other], expected, rtol=1e-3, atol=1e-3)


def test_mass_mean_of_several_classes_is_the_nearest_mean() -> None:
    values, labels = clusters(45, 12)
    unseen, _ = clusters(60, 12, seed=1)
    found = asked(trained(MassMeanProbe(), values, labels, ABC), unseen, ABC).log_scores[:, 0].argmax(-1)
    place = torch.tensor(["abc".index(label) for label in labels])
    for layer in range(2):
        means = torch.stack([values[layer, place == k].mean(0) for k in range(3)])
        assert torch.equal(found[layer], torch.cdist(unseen[layer], means).argmin(1))


# Description length


def coded(
    values: torch.Tensor, labels: list[str], answers: tuple[str, ...] = ABC, **settings: object
) -> dict[str, float]:
    """Return the measures of the first layer."""
    fitted = trained(MdlProbe(**settings), values, labels, answers)
    return {name: float(array[0, 0, 0]) for name, array in asked(fitted, values[:, :1], answers).measures.items()}


@pytest.mark.parametrize(("items", "width"), [(60, 90), (150, 40)], ids=["few items", "many items"])
def test_description_length_is_that_of_a_plain_computation(items: int, width: int) -> None:
    """Two items a subject; blocks, probes, half counts and the bits that name C, as in the docstring."""
    values, labels = clusters(items, width)
    groups = np.arange(items) // 2
    rng = np.random.default_rng(5)
    subjects = rng.permutation(items // 2)
    order = np.concatenate([np.flatnonzero(groups == subject) for subject in subjects])
    ends = sorted({2 * int(fraction * (items // 2)) for fraction in FRACTIONS} - {0})
    strengths = (0.001, 0.1)
    fitted = trained(MdlProbe(strengths, seed=5), values, labels, ABC, groups.tolist())
    measures = asked(fitted, values[:, :3], ABC).measures
    for layer in range(2):
        x = StandardScaler().fit_transform(values[layer].double().numpy())[order]
        y = np.array(labels)[order]
        lengths = []
        for strength in strengths:
            bits = ends[0] * np.log2(3)
            for start, end in pairwise(ends):
                if len(set(y[:start])) == 1:
                    gold = (y[start:end] == y[0]).astype(float)
                else:
                    probe = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x[:start], y[:start])
                    known = dict(zip(probe.classes_, probe.predict_proba(x[start:end]).T, strict=True))
                    gold = np.array(
                        [known[label][i] if label in known else 0.0 for i, label in enumerate(y[start:end])]
                    )
                bits -= np.log2((start * gold + 0.5) / (start + 1.5)).sum()
            lengths.append(bits)
        expected = (min(lengths) + 1) / items  # one bit says which of two strengths
        assert measures["description_length"][layer] == pytest.approx(np.full((1, 3), expected), rel=2e-3)
        # The uniform code takes log2 3 bits an item.
        product = measures["description_length"][layer] * measures["compression"][layer]
        assert product == pytest.approx(np.full((1, 3), np.log2(3)))


def test_random_labels_cannot_be_compressed() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(12):
        values = torch.tensor(rng.normal(size=(1, 120, 60))).float()
        labels = [ABC[k] for k in rng.permutation(np.arange(120) % 3)]
        found.append(coded(values, labels, seed=seed)["compression"])
    assert 0.85 < np.mean(found) <= 1.0
    assert max(found) <= 1.05


def test_labels_that_the_activation_gives_are_compressed() -> None:
    values, labels = clusters(240, 20, layers=1)
    clean = torch.nn.functional.one_hot(torch.tensor(["abc".index(label) for label in labels]), 20)[None] * 5.0
    assert coded(values + clean, labels)["compression"] > 2
    shuffled = [labels[i] for i in np.random.default_rng(1).permutation(240)]
    assert coded(values + clean, shuffled)["compression"] < 1.05


def test_an_answer_that_no_earlier_block_had_takes_finitely_many_bits() -> None:
    """Half of ten answers come last in the order of subjects: each time an answer is new, it costs what it must."""
    answers = tuple("abcdefghij")
    labels = [answers[k] for k in np.arange(100) % 10]
    values = torch.randn(1, 100, 30, generator=torch.Generator().manual_seed(0))
    groups = np.arange(100)
    order, ends = blocks(groups, 0)
    assert len(set(np.array(labels)[order[: ends[2]]])) < 10  # so that some are new
    assert np.isfinite(coded(values, labels, answers)["description_length"])


@pytest.mark.parametrize("subjects", [7, 130, 1500])
def test_blocks_hold_whole_subjects(subjects: int) -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(subjects), rng.integers(1, 4, subjects)))
    order, ends = blocks(groups, seed=3)
    assert sorted(order.tolist()) == list(range(len(groups)))
    assert ends[-1] == len(groups)
    parts = [set(groups[order[start:end]]) for start, end in pairwise([0, *ends])]
    assert all(parts)
    assert sum(map(len, parts)) == subjects == len(set().union(*parts))
    counts = np.cumsum([len(part) for part in parts])
    assert counts.tolist() == sorted({int(fraction * subjects) for fraction in FRACTIONS} - {0})
    assert not np.array_equal(order, blocks(groups, seed=4)[0])


def test_the_probe_that_answers_knows_all_blocks() -> None:
    values, labels = clusters(60, 90)
    found = asked(trained(MdlProbe((0.01,)), values, labels, ABC), values, ABC).log_scores[:, 0]
    for layer in range(2):
        x = StandardScaler().fit_transform(values[layer].double().numpy())
        plain = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(x, labels)
        torch.testing.assert_close(found[layer], torch.tensor(plain.predict_log_proba(x)).float(), rtol=1e-2, atol=1e-2)


# A hidden layer


def test_mlp_probe_is_a_plain_network_trained_twice() -> None:
    """With more items than coordinates nothing is rotated, and torch's own layers and Adam give the same scores."""
    values, labels = clusters(150, 10)
    probe = MlpProbe(hidden=7, steps=30, rate=0.02, seed=2)
    found = asked(trained(probe, values, labels, ABC), values, ABC).log_scores[:, 0]
    learn, choose = next(GroupShuffleSplit(1, test_size=0.25, random_state=2).split(labels, groups=range(150)))
    y = torch.tensor(["abc".index(label) for label in labels])
    for layer in range(2):
        x = torch.tensor(StandardScaler().fit_transform(values[layer].numpy())).float()
        watched = plain_network(x[learn], y[learn], 30)
        losses = [float(nn.functional.cross_entropy(run(x[choose]), y[choose])) for run in watched]
        best = int(np.argmin(losses))
        expected = plain_network(x, y, best)[-1](x).log_softmax(1)
        assert best > 0
        torch.testing.assert_close(found[layer], expected, rtol=1e-3, atol=1e-3)


def plain_network(x: torch.Tensor, y: torch.Tensor, steps: int) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Return the network before the first step and after each."""
    generator = torch.Generator().manual_seed(2)
    network = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.randn(10, 7, generator=generator).T / 10**0.5)
        for rest in (network[0].bias, network[2].weight, network[2].bias):
            rest.zero_()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02, eps=1e-6)
    kept = []

    def keep() -> None:
        held = {name: value.clone() for name, value in network.state_dict().items()}
        kept.append(lambda z: torch.func.functional_call(network, held, z).detach())

    keep()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
        keep()
    return kept


def test_a_hidden_layer_learns_what_no_linear_probe_can() -> None:
    """Which of two coordinates' signs agree."""
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.choice([-1.0, 1.0], size=(1, 400, 2)) + 0.1 * rng.normal(size=(1, 400, 2))).float()
    labels = ["a" if agree else "b" for agree in (values[0].prod(1) > 0).tolist()]

    def accuracy(make: Callable[[], Inspector]) -> float:
        found = asked(trained(make(), values[:, :200], labels[:200], ("a", "b")), values[:, 200:], ("a", "b"))
        return float(
            np.mean(
                [("a", "b")[k] == own for k, own in zip(found.log_scores[0, 0].argmax(-1), labels[200:], strict=True)]
            )
        )

    assert accuracy(lambda: MlpProbe(rate=0.03)) > 0.95
    assert accuracy(Probe) < 0.7


@pytest.mark.parametrize("items", [30, 90], ids=["more coordinates", "more items"])
def test_networks_of_many_layers_are_those_of_each_alone(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = clusters(items, 50, layers=3)
    together = asked(trained(MlpProbe(steps=20), values, labels, ABC), values, ABC).log_scores
    monkeypatch.setattr("lensbench.inspectors.probes.mlp_probe.CHUNK_BYTES", 1)  # one layer at a time
    chunked = asked(trained(MlpProbe(steps=20), values, labels, ABC), values, ABC).log_scores
    torch.testing.assert_close(chunked, together, rtol=1e-4, atol=1e-4)
    for layer in range(3):
        alone = asked(trained(MlpProbe(steps=20), values[[layer]], labels, ABC), values[[layer]], ABC).log_scores
        torch.testing.assert_close(alone[0], together[layer], rtol=1e-4, atol=1e-4)


# What all refuse


@pytest.mark.parametrize(
    ("probe", "name", "value", "message"),
    [
        (LinearProbe, "penalties", (), r"linear_probe: penalties is \(\), expected one or more numbers above 0"),
        (LinearProbe, "penalties", (1.0, -2.0), r"penalties is \(1.0, -2.0\)"),
        (LinearProbe, "penalties", (0.0,), "above 0"),
        (LinearProbe, "seed", -1, "seed is -1, expected a whole number not below 0"),
        (Probe, "strengths", (), r"probe: strengths is \(\)"),
        (Probe, "strengths", (float("nan"),), "strengths is"),
        (Probe, "seed", 1.5, "seed is 1.5"),
        (MdlProbe, "strengths", (-0.1,), "mdl_probe: strengths is"),
        (MdlProbe, "strengths", ("strong",), "strengths is"),
        (MdlProbe, "seed", True, "seed is True"),
        (MassMeanProbe, "covariance", "yes", "covariance is 'yes', expected true or false"),
        (MlpProbe, "hidden", 0, "mlp_probe: hidden is 0, expected a whole number not below 1"),
        (MlpProbe, "hidden", 2.5, "hidden is 2.5"),
        (MlpProbe, "steps", 0, "steps is 0"),
        (MlpProbe, "rate", 0.0, "rate is 0.0, expected a number above 0"),
        (MlpProbe, "rate", float("inf"), "rate is inf"),
        (MlpProbe, "seed", -1, "seed is -1"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(
    probe: type[Inspector], name: str, value: object, message: str
) -> None:
    model, wrong = tiny.model("llama"), probe()
    setattr(wrong, name, value)  # the tests' type checks would not let it through the constructor
    with pytest.raises(UsageError, match=message) as refused:
        wrong.check(Target(model), model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["probe", *PROBES])
def test_what_is_given_by_default_is_accepted(name: str) -> None:
    model = tiny.model("llama")
    {**PROBES, "probe": Probe}[name]().check(Target(model), model)


@pytest.mark.parametrize("name", [name for name in PROBES if name != "linear_probe"])
def test_answers_with_few_subjects_are_refused(name: str) -> None:
    values, labels = clusters(12, 8)
    with pytest.raises(NotApplicableError, match=r"3 of 3 answers have fewer than 5 training subjects \(a: 4\)"):
        trained(PROBES[name](), values, labels, ABC)


@pytest.mark.parametrize("rival", [Majority, InputClassifier])
def test_rivals_that_learn_answer_where_answers_have_few_subjects(rival: type[Inspector]) -> None:
    """A linear probe needs five subjects in all; what stands against it must not need five an answer."""
    model, labels = tiny.model("llama"), ("a", "b", "c") * 2

    def fitted(count: int) -> Inspector:
        texts = tuple(SourceText(f"about {label}{place}", label) for place, label in enumerate(labels[:count]))
        training = Training(ABC, tuple(range(count)), None, texts, labels[:count])
        return rival().fit(Target(model), model, training)

    asked = tuple(SourceText(f"about {label}9", label) for label in ABC)
    scores = fitted(6).inspect(Evidence(ABC, (ABC,) * 3, (), None, texts=asked)).log_scores
    assert bool(scores.isfinite().all())
    with pytest.raises(NotApplicableError, match=r"3 of 3 answers have fewer than 2 training subjects \(a: 1\)"):
        fitted(3)


# On a real model


@pytest.fixture(scope="module")
def continents(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evaluate(
        str(smollm2_folder),
        tasks=("attribute_extraction/country_continent",),
        inspectors=("probe", "linear_probe", "mass_mean_probe", "mdl_probe", "mlp_probe"),
        baselines=("control_task",),
        sites=("subject",),
        layers="0,8",
        out=tmp_path_factory.mktemp("runs") / "continents",
    )


def measured(run: Run, inspector: str, metric: str, rule: str) -> dict[int, float]:
    """Return a metric of the one relation by layer."""
    table = pd.read_csv(run.path / "metrics.csv")
    rows = table.query("relation != 'all' and inspector == @inspector and metric == @metric and rule == @rule")
    return dict(zip(rows.layer, rows.value, strict=True))


@pytest.mark.model
def test_continents_are_read_better_where_the_model_has_computed(continents: Run) -> None:
    assert continents.failed == {}
    own = continents.records.query("baseline == 'none'")
    accuracy = own.groupby(["inspector", "layer"], observed=True).correct.mean().unstack()
    assert (accuracy > 0.5).all(axis=None), accuracy  # chance is 1/6
    assert (accuracy[8] > accuracy[0] + 0.04).all(), accuracy
    compression = measured(continents, "mdl_probe", "compression", "default")
    assert compression[8] > compression[0] + 0.08 > 1.3, compression


@pytest.mark.model
def test_random_labels_can_be_memorised_and_cannot_be_compressed(continents: Run) -> None:
    control = continents.records.query("baseline == 'control_task'")
    accuracy = control.groupby(["attempt", "inspector", "layer"], observed=True).correct.mean().unstack([0])
    assert (accuracy.random_labels_held_out < 0.3).all(), accuracy
    assert (accuracy.true_labels_seen > accuracy.random_labels_seen).all(), accuracy
    assert accuracy.random_labels_seen["linear_probe"].min() > 0.7, accuracy
    for rule in ("random_labels_seen", "random_labels_held_out"):
        assert max(measured(continents, "mdl_probe", "compression", rule).values()) < 1.0
    assert min(measured(continents, "probe", "selectivity", "fixed").values()) > 0.15
