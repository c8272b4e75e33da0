"""Each method against its definition, and against the conformance checks."""

import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from sklearn.preprocessing import StandardScaler

from lensbench import testing
from lensbench.baselines import diagnostics
from lensbench.baselines.readers import ChoicesOnly, InputClassifier, Majority, TextReader
from lensbench.baselines.spec import find_function
from lensbench.errors import UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.scoring import prediction_columns, prior_corrected
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Training
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.probes import probe as probe_module
from lensbench.inspectors.probes.logistic import PrincipalComponents, Regressions, fit_regressions
from lensbench.inspectors.probes.probe import Probe
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import patcher_of
from lensbench.models.prompting import score_next_tokens
from lensbench.models.tokens import Tokens
from tests import tiny


@pytest.fixture(scope="module")
def bench() -> Bench:
    return testing.small_bench()


METHODS = {
    "tuned_lens": lambda: TunedLens(tokens=1024, steps=2),
    "patchscope with attempts": lambda: Patchscope(target_layers=(1, 0, 4)),
    "text_reader": lambda: TextReader(("{subject} likes", "{source}\nThey like")),
    "choices_only": ChoicesOnly,
    "majority": Majority,
    "input_classifier": InputClassifier,
}


@pytest.mark.parametrize("name", METHODS)
def test_conformance(name: str, bench: Bench) -> None:
    assert len(testing.check_inspector(METHODS[name], bench)) >= 5


class Constant(Inspector):
    name = "constant"
    reads = frozenset()

    def inspect(self, evidence: Evidence) -> Scores:
        return Scores(("default",), torch.zeros(1, 1, evidence.n_items, len(evidence.answers)))


class BatchReader(Inspector):
    """Compares items of a batch: must be caught."""

    name = "batch_reader"

    def inspect(self, evidence: Evidence) -> Scores:
        values = evidence.residuals.values
        centred = (values - values.mean(1, keepdim=True)).sum(-1)
        return Scores(("default",), torch.stack([centred, -centred], -1)[:, None])


class LaterLayer(Inspector):
    """Answers from the deepest layer that it is shown: must be caught."""

    name = "later_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        deepest = evidence.residuals.values[-1].sum(-1).expand(len(evidence.layers), -1)
        return Scores(("default",), torch.stack([deepest, -deepest], -1)[:, None])


def test_constant_scorer_passes_and_gets_exactly_chance(bench: Bench) -> None:
    assert "check_constant_activation" in testing.check_inspector(Constant, bench)


@pytest.mark.parametrize(
    ("cheat", "caught"), [(BatchReader, "an item alone scores otherwise"), (LaterLayer, "scores of layer 0 move")]
)
def test_cheats_are_caught(cheat: type[Inspector], caught: str, bench: Bench) -> None:
    with pytest.raises(AssertionError, match=caught):
        testing.check_inspector(cheat, bench)


def test_wrong_shape_and_nan_are_refused(bench: Bench) -> None:
    class Short(Constant):
        def inspect(self, evidence: Evidence) -> Scores:
            return Scores(("default",), torch.zeros(1, 1, 1, 1))

    class Nan(Constant):
        def inspect(self, evidence: Evidence) -> Scores:
            return Scores(("default",), torch.full((1, 1, evidence.n_items, len(evidence.answers)), torch.nan))

    with pytest.raises(ValueError, match=r"log_scores of shape \(1, 1, 1, 1\)"):
        CrossFit(Short, bench).scores()
    with pytest.raises(ValueError, match="not a number"):
        CrossFit(Nan, bench).scores()


def test_logit_lens_of_the_last_layer_is_the_model(bench: Bench) -> None:
    model = bench.context.model
    scores = CrossFit(LogitLens, bench).scores()
    item = bench.items[3]
    ids = torch.tensor([model.tokens.encode(item.source).ids])
    with torch.no_grad():
        expected = model.module(ids).logits[0, -1].log_softmax(-1)
    tokens = [model.tokens.answer_token(answer) for answer in bench.answers]
    torch.testing.assert_close(scores.log_scores[-1, 0, 3], expected[tokens], rtol=1e-4, atol=1e-4)


def test_patchscope_into_its_own_place_is_the_clean_run() -> None:
    """T = S, i* = i, l* = l, f = identity: the definition's fixed point."""
    model = tiny.model("gemma3_text")
    subjects = testing.Subjects(("x",) * 1, ("tea", "wine"))
    bench = testing.make_bench(model, Corpus(model), subjects, (0, 1, 2, 3, 4))
    prompt = "We talk about {subject} and they say"
    ids = torch.tensor([model.tokens.encode(prompt.replace("{subject}", "x")).ids])
    with torch.no_grad():
        expected = model.module(ids).logits[0, -1].log_softmax(-1)
    tokens = [model.tokens.answer_token(answer) for answer in bench.answers]
    for layer in range(5):
        scores = CrossFit(lambda layer=layer: Patchscope((layer,), prompt), bench).scores()
        torch.testing.assert_close(scores.log_scores[layer, 0, 0], expected[tokens], rtol=1e-4, atol=1e-4)


def test_patchscope_refuses_what_cannot_work() -> None:
    model, other = tiny.model("llama"), tiny.model("gpt2")
    with pytest.raises(UsageError, match=r"target_layers \(5,\); tiny-llama has layers 0 to 4"):
        Patchscope((5,)).check(Target(model), model)
    narrow = Target(other)
    narrow.d_model = 16
    with pytest.raises(UsageError, match="choose a verbalizer of the same width"):
        Patchscope().check(narrow, model)


def test_tuned_lens_lowers_divergence_at_every_layer() -> None:
    """On a model whose layers differ: ridge below the logit lens, on prose that it has not seen."""
    model = tiny.model("llama")
    corpus = Corpus(model)
    target = Target(model)
    held = torch.cat(list(corpus.residuals(1024, skip=40960)), dim=1)
    goal = model.unembed(held[-1]).log_softmax(-1)

    def divergence(lens: TunedLens) -> list[float]:
        fitted = lens.fit(target, model, Training(corpus=corpus))
        moved = fitted.translate(tuple(range(4)), held[:4])
        lenses = [model.unembed(h).log_softmax(-1) for h in moved]
        return [float((goal.exp() * (goal - lens)).sum(-1).mean()) for lens in lenses]

    plain, ridge, trained = (divergence(TunedLens(tokens=t, steps=s)) for t, s in ((0, 0), (16384, 0), (16384, 20)))
    assert all(b < a for a, b in zip(plain, ridge, strict=True))
    assert sum(trained) < sum(ridge)


def test_ridge_is_least_squares() -> None:
    """Without penalty the translator is numpy's least-squares solution."""
    model = tiny.model("llama")
    corpus = Corpus(model)
    fitted = TunedLens(tokens=4096, ridge=0.0, steps=0).fit(Target(model), model, Training(corpus=corpus))
    values = torch.cat(list(corpus.residuals(4096)), dim=1).double()
    x = torch.cat([values[2], torch.ones(values.shape[1], 1)], dim=1)
    solution = torch.linalg.lstsq(x, values[-1] - values[2]).solution
    torch.testing.assert_close(fitted.weight_[2].double(), solution[:-1].T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fitted.bias_[2].double(), solution[-1], rtol=1e-3, atol=1e-3)


def test_tuned_lens_is_learned_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    corpus = Corpus(model, cache=tmp_path)
    first = TunedLens(tokens=1024, steps=1).fit(Target(model), model, Training(corpus=corpus))
    monkeypatch.setattr(TunedLens, "_learn", lambda *_: pytest.fail("learned again"))
    again = TunedLens(tokens=1024, steps=1).fit(Target(model), model, Training(corpus=corpus))
    assert torch.equal(first.weight_, again.weight_)
    assert [path.suffix for path in tmp_path.glob("*/*.safetensors")] == [".safetensors"]


def unused_model() -> tuple[Target, LanguageModel]:
    model = tiny.model("llama")
    return Target(model), model


def labelled(items: int, width: int, layers: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Residuals in which three classes lie apart, in a few directions of very unequal size; labels; subjects."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, items)
    centres = rng.normal(size=(layers, 3, width))
    noise = rng.normal(size=(layers, items, width)) * np.geomspace(4.0, 0.5, width)
    return torch.tensor(centres[:, labels] + noise).float(), np.array(["a", "b", "c"])[labels], np.arange(items) // 2


@pytest.mark.parametrize(("items", "width"), [(60, 90), (100, 90), (200, 90)], ids=["few", "between", "many"])
def test_probe_equals_plain_scikit_learn(items: int, width: int) -> None:
    """With fewer learning items than coordinates, with fewer only than items, and with more: the same C and scores.

    Ours ends where the largest derivative is 1e-5.
    """
    strengths = (0.001, 0.01, 0.1)
    values, labels, groups = labelled(items, width, layers=3)
    training = Training(
        ("a", "b", "c"), tuple(groups.tolist()), lambda: Residuals((0, 1, 2), values), None, tuple(labels)
    )
    probe = Probe(strengths).fit(*unused_model(), training)
    unseen, _, _ = labelled(50, width, layers=3, seed=1)
    found = probe.inspect(Evidence(("a", "b", "c"), ((),) * 50, (0, 1, 2), Residuals((0, 1, 2), unseen))).log_scores
    learn, choose = next(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(labels, groups=groups))
    for layer in range(3):
        scaler = StandardScaler().fit(values[layer].numpy())
        standard = scaler.transform(values[layer].numpy())
        fits = [LogisticRegression(C=c).fit(standard[learn], labels[learn]) for c in strengths]
        losses = [log_loss(labels[choose], fit.predict_proba(standard[choose])) for fit in fits]
        plain = LogisticRegression(C=strengths[int(np.argmin(losses))], tol=1e-8, max_iter=1000).fit(standard, labels)
        assert probe.probes_[layer].C == plain.C
        expected = plain.predict_log_proba(scaler.transform(unseen[layer].numpy()))
        torch.testing.assert_close(found[layer, 0], torch.tensor(expected).float(), rtol=1e-3, atol=2e-3)
        picked = np.take_along_axis(expected, found[layer, 0].argmax(-1, keepdim=True).numpy(), axis=-1)[:, 0]
        assert (picked >= expected.max(-1) - 0.004).all()


def test_probe_decomposes_the_same_activations_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels of the same activations share them, and other subjects held out; other activations do not."""
    values, labels, groups = labelled(60, 90, layers=2)
    others = labelled(60, 90, layers=2, seed=3)[0]
    unseen = Residuals((0, 1), labelled(20, 90, layers=2, seed=1)[0])
    asked = Evidence(("a", "b", "c"), ((),) * 20, (0, 1), unseen)
    calls: list[int] = []
    original = PrincipalComponents.of

    def counted(items: torch.Tensor) -> PrincipalComponents:
        calls.append(len(items))
        return original(items)

    def scores(given: torch.Tensor, answers: np.ndarray, seed: int = 0) -> torch.Tensor:
        read = lambda: Residuals((0, 1), given)  # noqa: E731
        training = Training(("a", "b", "c"), tuple(groups.tolist()), read, None, tuple(answers))
        return Probe(seed=seed).fit(*unused_model(), training).inspect(asked).log_scores

    monkeypatch.setattr(PrincipalComponents, "of", staticmethod(counted))
    cases = [(values, labels, 0), (others, labels, 0), (values, labels[::-1], 0), (values, labels, 1)]
    alone = []
    for case in cases:
        probe_module._kept.clear()
        alone.append(scores(*case))
    probe_module._kept.clear()
    calls.clear()
    for case, expected, decompositions in zip(cases, alone, (1, 2, 2, 2), strict=True):
        assert torch.equal(scores(*case), expected)
        assert len(calls) == decompositions


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("items", "width"), [(30, 50), (80, 20)], ids=["wide", "tall"])
def test_regressions_of_all_layers_at_once_have_the_minimum_of_scikit_learn(
    classes: int, items: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, items, width, generator=generator, dtype=torch.float64) * torch.logspace(0.5, -2, width)
    values[:, 1] = values[:, 0]  # fewer components than items
    labels = torch.arange(items) % classes
    components = PrincipalComponents.of(values)
    strengths = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    start = Regressions.zeros(components, classes)
    found = fit_regressions(components, labels, strengths, start, 1e-9)
    weight = components.directions(values, found.weight)
    torch.testing.assert_close(components.features.mT @ components.features, torch.diag_embed(components.squares))
    for layer in range(3):
        plain = LogisticRegression(C=float(strengths[layer]), tol=1e-9, max_iter=10000, solver="newton-cholesky")
        plain.fit(values[layer].numpy(), labels.numpy())
        expected = torch.from_numpy(plain.predict_log_proba(values[layer].numpy()))
        torch.testing.assert_close(found.log_probs(components.features)[layer].T, expected, rtol=1e-5, atol=1e-5)
        again = (values[layer] @ weight[layer].T + found.bias[layer]).log_softmax(1)
        torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def test_probe_of_equal_activations_says_how_frequent_classes_are() -> None:
    """As at layer 0 of prompts that end alike."""
    labels = ("a",) * 6 + ("b",) * 6 + ("c",) * 12
    training = Training(("a", "b", "c"), tuple(range(24)), lambda: Residuals((0,), torch.ones(1, 24, 40)), None, labels)
    probe = Probe().fit(*unused_model(), training)
    scores = probe.inspect(Evidence(("a", "b", "c"), ((),), (0,), Residuals((0,), torch.ones(1, 1, 40)))).log_scores
    torch.testing.assert_close(scores[0, 0, 0].exp(), torch.tensor([0.25, 0.25, 0.5]), rtol=1e-2, atol=1e-2)


def test_the_mean_is_exactly_chance_when_corrected(bench: Bench) -> None:
    """It tells items apart by nothing: neither above chance nor, which would make it no baseline, below."""
    (outcome,) = find_function("mean_activation")(CrossFit(LogitLens, bench))
    columns = prediction_columns(outcome.items, bench.answers, outcome.scores, outcome.layers, correct_prior=True)
    assert columns["correct_corrected"] == pytest.approx(0.5)


def test_input_only_asks_the_source_where_it_asks(bench: Bench) -> None:
    benches = {
        site: replace(bench, items=tuple(replace(item, site=site) for item in bench.items))
        for site in ("subject", "t1", "t2", "answer")
    }
    forms = {
        site: set(find_function("input_only")(CrossFit(LogitLens, b))[0].scores.attempts) for site, b in benches.items()
    }
    assert forms["subject"] == forms["t1"]
    assert forms["answer"] - forms["subject"] == forms["t2"] - forms["subject"] == {"{source}"}


def test_random_labels_are_dealt_within_choice_sets(bench: Bench) -> None:
    sets = (("tea", "wine"), ("milk", "water"))
    items = tuple(
        replace(item, choices=sets[i % 2], answer=sets[i % 2][i // 2 % 2]) for i, item in enumerate(bench.train_items)
    )
    dealt = diagnostics._random_labels(items, "seed")
    assert all(dealt[item.subject] in item.choices for item in items)
    assert dealt != {item.subject: item.answer for item in items}


def test_impossible_answers_do_not_shift_the_prior() -> None:
    scores = np.array([[[[-10.0, -1.0], [-np.inf, -1.0], [-10.0, -1.0]]]])
    own = np.ones((3, 2), dtype=bool)
    corrected = prior_corrected(scores, own, [0, 1, 2])
    assert corrected[0, 0, 0, 0] == 0.0
    assert np.isneginf(corrected[0, 0, 1, 0])


def test_the_fingerprint_sees_any_weight() -> None:
    module = tiny.module("llama")
    before = LanguageModel(module, Tokens(tiny.tokenizer()), "m").fingerprint
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[5, 7] += 1e-3
    assert LanguageModel(module, Tokens(tiny.tokenizer()), "m").fingerprint != before


def test_the_fingerprint_does_not_see_the_padding_that_was_asked_for_last() -> None:
    before = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "m").fingerprint
    padded = copy.deepcopy(tiny.tokenizer())
    padded(["one", "one and two"], padding="max_length", max_length=9, truncation=True)
    assert padded.backend_tokenizer.padding is not None
    assert LanguageModel(tiny.module("llama"), Tokens(padded), "m").fingerprint == before


def test_a_model_is_freed_after_use() -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "m")
    patcher_of(model)
    score_next_tokens(model, ["They say so"], [5])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
