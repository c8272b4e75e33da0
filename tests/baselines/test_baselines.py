"""The rivals: each against a naive account of what it removes, and where it does not apply."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lensbench import evaluate, testing
from lensbench.baselines.activation import derangement, draw_like, gaussian_like
from lensbench.baselines.diagnostics import before_subject
from lensbench.baselines.readers import TextReader
from lensbench.baselines.spec import ROLES, choose_baselines, find_baselines, find_function, strided
from lensbench.baselines.target import facts_about
from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.evaluation.config import check_config, make_config
from lensbench.evaluation.models import check_control_model
from lensbench.evaluation.plan import required_baselines
from lensbench.harness.bench import Bench
from lensbench.harness.context import ControlModels
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.scoring import credit_as_chance
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.patchscopes.superscopes import Superscopes
from lensbench.inspectors.probes.probe import Probe
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.models.activations import ResidualCache, capture
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import with_random_weights
from lensbench.models.sources import planted_facts
from lensbench.models.tokens import Tokens
from tests import tiny

LAYERS = (0, 1, 2, 3, 4)
PLANTED = 3
"""The layer below which edited models are the same."""


def edited(seed: int = 1, kind: str = "llama") -> torch.nn.Module:
    """The tiny model with another down projection in the block whose output is layer 3."""
    module = tiny.module(kind)
    weight = module.model.layers[PLANTED - 1].mlp.down_proj.weight
    with torch.no_grad():
        weight += 2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    return module


def named(module: torch.nn.Module, name: str) -> LanguageModel:
    return LanguageModel(module, Tokens(tiny.tokenizer()), name)


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Twenty subjects on an edited model; the plain one is unplanted model and reference, another edit the twin."""
    plain, target, twin = tiny.model("llama"), named(edited(1), "target"), named(edited(2), "twin")
    made = made_bench(target)
    facts = {"made_up": {item.subject: "tea" for item in made.items[:16]}}
    relatives = ControlModels({"unplanted": plain, "twin": twin, "reference": plain}, facts)
    return replace(made, context=replace(made.context, controls=relatives))


def made_bench(model: LanguageModel, corpus: Corpus | None = None) -> Bench:
    firsts, lasts = ("Bo", "Cy", "Di", "Ed", "Fay"), ("Ash", "Birch", "Cole", "Dow")
    names = tuple(f"{first} {last}" for first in firsts for last in lasts)
    return testing.make_bench(model, corpus or Corpus(model), testing.Subjects(names, ("tea", "wine")), LAYERS)


class Recorder(Inspector):
    """Keeps what it is shown."""

    name = "recorder"
    reads = frozenset({"activation"})

    def inspect(self, evidence: Evidence) -> Scores:
        type(self).seen = evidence
        return Scores(("default",), torch.zeros(len(evidence.layers), 1, evidence.n_items, len(evidence.answers)))


class Curious(Recorder):
    """Reads components and the target, too."""

    name = "curious"
    reads = frozenset({"activation", "components", "target"})


class NormReader(Inspector):
    """Reads the length of the activation alone."""

    name = "norm_reader"

    def inspect(self, evidence: Evidence) -> Scores:
        norms = evidence.residuals.values.float().norm(dim=-1)[:, None, :, None]
        return Scores(("default",), torch.cat([norms, -norms], dim=-1))


def shown(rival: str, bench: Bench, make: Callable[[], Inspector] = Recorder) -> Evidence:
    """What a rival shows to a method."""
    run(rival, make, bench)
    return make.seen


def run(rival: str, make: Callable[[], Inspector], bench: Bench, **parameters: object) -> list:
    return find_function(rival)(CrossFit(make, bench), **parameters)


# --- uses the activation


def test_draws_have_mean_and_covariance_of_the_items() -> None:
    """With W such that W'W = n I and W 1 = 0, the n draws have these moments exactly."""
    generator = torch.Generator().manual_seed(0)
    for n, width in ((5, 8), (40, 6)):
        real = torch.randn(2, n, width, generator=generator, dtype=torch.float32) * 3 + 1
        square = torch.linalg.qr(torch.cat([torch.ones(n, 1), torch.randn(n, n - 1, generator=generator)], dim=1)).Q
        weights = square[:, 1:] @ torch.randn(n - 1, n - 1, generator=generator).svd().U * math.sqrt(n)
        weights = weights @ square[:, 1:].T
        drawn = draw_like(real, weights)
        torch.testing.assert_close(drawn.mean(1), real.mean(1), rtol=1e-4, atol=1e-4)
        for one, other in zip(drawn, real, strict=True):
            torch.testing.assert_close(one.T.cov(correction=0), other.T.cov(), rtol=1e-3, atol=1e-3)


def test_gaussian_against_a_naive_reference_each_row_as_long_as_its_item() -> None:
    generator = torch.Generator().manual_seed(0)
    real, weights = torch.randn(3, 7, 5, generator=generator), torch.randn(7, 7, generator=generator)
    found = gaussian_like(real, weights)
    for layer, item in np.ndindex(3, 7):
        mean = real[layer].mean(0)
        noise = mean + sum(weights[item, j] * (real[layer, j] - mean) for j in range(7)) / math.sqrt(6)
        expected = noise / noise.norm() * real[layer, item].norm()
        torch.testing.assert_close(found[layer, item], expected)
    assert gaussian_like(real.bfloat16(), weights).dtype == torch.bfloat16


def test_a_reader_of_lengths_is_matched_by_gaussian(bench: Bench) -> None:
    (outcome,) = run("gaussian", NormReader, bench)
    torch.testing.assert_close(outcome.scores.log_scores, CrossFit(NormReader, bench).scores().log_scores)
    assert outcome.layers == LAYERS
    assert outcome.zero_shot


def test_gaussian_is_the_same_for_a_seed_and_another_for_another(bench: Bench) -> None:
    first, again = (shown("gaussian", bench).residuals.values for _ in range(2))
    assert torch.equal(first, again)
    other = shown("gaussian", replace(bench, context=replace(bench.context, seed=1))).residuals.values
    assert not torch.isclose(first, other).all(-1).any()
    assert not torch.isclose(first, bench.residuals.values).all(-1).any()
    with pytest.raises(NotApplicableError, match="a single item has no covariance"):
        run("gaussian", Recorder, replace(bench, items=bench.items[:1]))


def test_gaussian_stands_in_for_components_and_runs(bench: Bench) -> None:
    evidence = shown("gaussian", bench, Curious)
    for found, real in (
        (evidence.components.read("mlp"), bench.component("mlp")),
        (evidence.runs.own().read("site", LAYERS), bench.residuals),
    ):
        assert found.values.shape == real.values.shape
        torch.testing.assert_close(found.values.norm(dim=-1), real.values.norm(dim=-1))
        assert not torch.isclose(found.values, real.values).all(-1)[1:].any()
    assert run("gaussian", Superscopes, bench)


# --- beats the text


def test_random_model_is_the_same_architecture_with_other_weights() -> None:
    for kind in ("llama", "gpt2", "gemma2"):
        model = tiny.model(kind)
        random = with_random_weights(model, 0)
        assert random is with_random_weights(model, 0)
        assert random.fingerprint != model.fingerprint
        assert (random.n_layers, random.d_model, random.dtype, random.device) == (
            model.n_layers, model.d_model, model.dtype, model.device,
        )  # fmt: skip
        assert random.tokens is model.tokens
        model.cache.pop(("random_weights", 0))
        assert with_random_weights(model, 0).fingerprint == random.fingerprint, "the same seed, the same weights"
        assert with_random_weights(model, 1).fingerprint != random.fingerprint


def test_making_a_random_model_leaves_the_random_state_alone() -> None:
    model = tiny.model("gpt2")
    model.cache.pop(("random_weights", 3), None)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with_random_weights(model, 3)
    assert torch.equal(torch.rand(3), expected)


class TwoStrengths(Probe):
    """A probe that makes two attempts, as the attribute lens makes one a factor."""

    name = "two_strengths"
    tries = "2 strengths"

    def inspect(self, evidence: Evidence) -> Scores:
        own = super().inspect(evidence).log_scores
        return Scores(("default", "half"), torch.cat([own, own / 2], dim=1))


def test_the_control_task_is_that_of_the_default_attempt(bench: Bench) -> None:
    """Each of its three rows is one prediction an item and layer, whatever the number of the method's attempts."""
    for several, one in zip(run("control_task", TwoStrengths, bench), run("control_task", Probe, bench), strict=True):
        several.scores.validate("control task", (len(LAYERS), len(bench.items), len(bench.answers)))
        assert several.scores.attempts == one.scores.attempts
        torch.testing.assert_close(several.scores.log_scores, one.scores.log_scores)


def test_random_model_is_the_probe_on_its_activations(bench: Bench) -> None:
    random = with_random_weights(bench.context.model, 0)
    ids = [tuple(bench.context.model.tokens.encode(item.source).ids) for item in bench.items]
    hidden = [random.module(torch.tensor([one]), output_hidden_states=True).hidden_states[2][0, -1] for one in ids]
    torch.testing.assert_close(
        bench.with_model(random).residuals.at_layers((2,)).values[0], torch.stack(hidden), rtol=1e-4, atol=1e-5
    )
    (outcome,) = run("random_model", Probe, bench, seed=0)
    expected = CrossFit(Probe, made_bench(random)).scores()
    torch.testing.assert_close(outcome.scores.log_scores, expected.log_scores)
    assert not outcome.zero_shot


def test_verbalizer_probe_is_the_probe_on_the_verbalizers_activations(bench: Bench) -> None:
    other = tiny.model("qwen3")
    asked = replace(bench, context=replace(bench.context, verbalizer=other))
    (outcome,) = run("verbalizer_probe", Probe, asked)
    torch.testing.assert_close(outcome.scores.log_scores, CrossFit(Probe, made_bench(other)).scores().log_scores)
    same = replace(bench, context=replace(bench.context, verbalizer=named(edited(1), "the same under another name")))
    for one in (bench, same):
        with pytest.raises(NotApplicableError, match="the verbalizer is the target"):
            run("verbalizer_probe", Probe, one)


def test_layers_of_a_verbalizer_of_another_depth_are_those_as_deep(bench: Bench) -> None:
    shallow = testing.small_bench().context.model
    shallow = LanguageModel(_cut(shallow.module, 2), shallow.tokens, "two layers")
    lab = bench.context.with_model(shallow)
    assert lab.captured_layers == LAYERS
    assert lab.source_layers(lab.captured_layers) == (0, 1, 1, 2, 2)
    # Back on a model of the target's depth the numbers are the target's again.
    assert lab.with_model(tiny.model("llama")).source_layers(LAYERS) == LAYERS
    found = bench.with_model(shallow).residuals
    assert found.layers == LAYERS
    own = capture(shallow, bench.with_model(shallow).readings(bench.items), (0, 1, 2)).values
    assert torch.equal(found.values, own[[0, 1, 1, 2, 2]])

    class RunsTarget(Recorder):
        reads = frozenset({"activation", "target"})

    asked = replace(bench, context=replace(bench.context, verbalizer=shallow))
    with pytest.raises(NotApplicableError, match="runs the target at its 4 layers; the verbalizer has 2"):
        run("verbalizer_probe", RunsTarget, asked)


def _cut(module: torch.nn.Module, layers: int) -> torch.nn.Module:
    import copy

    cut = copy.deepcopy(module)
    cut.model.layers = cut.model.layers[:layers]
    cut.config.num_hidden_layers = layers
    return cut


# --- target-specific


@pytest.mark.parametrize("make", [LogitLens, Patchscope, Superscopes], ids=lambda make: make.name)
def test_unplanted_is_the_method_to_the_bit_below_the_planted_layer(make: type[Inspector], bench: Bench) -> None:
    own, (outcome,) = CrossFit(make, bench).scores(), run("unplanted", make, bench)
    assert outcome.layers == LAYERS
    assert torch.equal(outcome.scores.log_scores[:PLANTED], own.log_scores[:PLANTED])
    assert (outcome.scores.log_scores[PLANTED:] != own.log_scores[PLANTED:]).flatten(1).any(1).all()


def test_every_source_of_the_unplanted_is_the_unplanted_models(bench: Bench) -> None:
    evidence, plain = shown("unplanted", bench, Curious), made_bench(bench.context.controls.models["unplanted"])
    assert torch.equal(evidence.residuals.values, plain.residuals.values)
    assert torch.equal(evidence.components.read("mlp").values, plain.component("mlp").values)
    expected = plain.evidence(Curious.reads, range(20), LAYERS).runs
    for ours, theirs in ((evidence.runs.own(), expected.own()), *[
        (one.asked(bench.question), other.asked(bench.question)) for one, other in [(evidence.runs, expected)]
    ]):  # fmt: skip
        assert torch.equal(ours.read("site", LAYERS).values, theirs.read("site", LAYERS).values)
        assert torch.equal(ours.predict(bench.answers).log_probs, theirs.predict(bench.answers).log_probs)


def test_what_learns_labels_learns_them_anew_and_what_does_not_keeps_its_fit(bench: Bench) -> None:
    method = CrossFit(Probe, bench)
    method.scores()
    kept = dict(method.fitted)
    (outcome,) = find_function("unplanted")(method)
    expected = CrossFit(Probe, made_bench(tiny.model("llama"))).scores().log_scores
    torch.testing.assert_close(outcome.scores.log_scores, expected)
    assert len(method.fitted) == 2 * len(kept), "five more fits"
    assert all(method.fitted[key] is one for key, one in kept.items())

    lens = CrossFit(lambda: TunedLens(tokens=512, steps=0), bench)
    (outcome,) = find_function("unplanted")(lens)  # before the method itself: as in a resumed run
    (fit,) = lens.fitted.values()
    assert fit.target_ is bench.context.target
    torch.testing.assert_close(outcome.scores.log_scores[:PLANTED], lens.scores().log_scores[:PLANTED])


def test_rivals_that_read_one_model_share_its_captures_and_fits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = bench.context.controls.models["unplanted"]
    fresh = replace(bench, context=replace(bench.context, verbalizer=plain))
    calls = []
    original = ResidualCache.read
    monkeypatch.setattr(
        ResidualCache, "read", lambda self, model, *rest: calls.append(model) or original(self, model, *rest)
    )
    method = CrossFit(Probe, fresh)
    (first,), (second,) = find_function("unplanted")(method), find_function("verbalizer_probe")(method)
    assert calls.count(plain) == 2, "training and test items, once"
    assert len(method.fitted) == 10, "five at all layers of the target, five at those where the other is another"
    assert torch.equal(first.scores.log_scores, second.scores.log_scores)


def test_the_residual_cache_never_mixes_models(bench: Bench, tmp_path: Path) -> None:
    kept = replace(bench, context=replace(bench.context, residuals=ResidualCache(tmp_path, 10**9)))
    models = [bench.context.model, *bench.context.controls.models.values()]
    for _ in range(2):
        for model in models:
            assert torch.equal(replace(kept).with_model(model).residuals.values, made_bench(model).residuals.values)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_twin_is_scored_where_the_worlds_differ_and_its_own_fact_is_chance(bench: Bench) -> None:
    (outcome,) = run("twin", LogitLens, bench)
    told = bench.context.controls.twin_facts["made_up"]
    assert [item.answer for item in outcome.items] == ["wine"] * 8, "tea is what the twin was told of sixteen subjects"
    assert outcome.credited_as_chance == ("tea",) * 8
    places = [i for i, item in enumerate(bench.items) if item.subject in told and item.answer != "tea"]
    expected = CrossFit(LogitLens, made_bench(bench.context.controls.models["twin"])).scores().log_scores[:, :, places]
    assert torch.equal(outcome.scores.log_scores, expected)
    agreed = replace(bench, items=tuple(item for item in bench.items if item.answer == "tea"))
    with pytest.raises(NotApplicableError, match="holds no other fact"):
        run("twin", LogitLens, agreed)


def test_credited_as_chance_answers_get_the_credit_of_a_guess() -> None:
    columns = {"chance": np.array([0.25] * 4, dtype=object)}
    for kind in ("", "_corrected"):
        columns[f"predicted{kind}"] = np.array(["twin's", "gold", "other", "twin's"], dtype=object)
        columns[f"correct{kind}"] = np.array([0.0, 1.0, 0.0, 0.5])
    credit_as_chance(columns, ("twin's", "twin's"))
    assert columns["correct"].tolist() == columns["correct_corrected"].tolist() == [0.25, 1.0, 0.0, 0.5]


def test_facts_are_those_of_the_attribute_that_a_relation_is_named_after() -> None:
    facts = {"city": {"Bo": "Oslo"}, "city_of_birth": {"Bo": "Cairo"}, "drink": {"Bo": "tea"}}
    assert facts_about("city", facts) == facts_about("city_twin", facts) == {"Bo": "Oslo"}
    assert facts_about("city_of_birth_twin", facts) == {"Bo": "Cairo"}
    assert facts_about("sport", facts) == facts_about("citya", facts) == {}


@pytest.mark.parametrize("make", [LogitLens, Probe, Patchscope], ids=lambda make: make.name)
def test_the_reference_is_asked_in_every_form_whatever_the_method(make: type[Inspector], bench: Bench) -> None:
    (outcome,) = run("reference_reader", make, bench)
    (forms,) = run("input_only", make, bench)
    assert outcome.scores.attempts == forms.scores.attempts
    plain = made_bench(tiny.model("llama"))
    expected = CrossFit(lambda: TextReader(outcome.scores.attempts), plain).scores()
    assert torch.equal(outcome.scores.log_scores, expected.log_scores)
    assert outcome.layers == (None,)


@pytest.mark.parametrize("rival", ["unplanted", "twin", "reference_reader"])
def test_without_its_model_a_rival_does_not_apply(rival: str, bench: Bench) -> None:
    alone = replace(bench, context=replace(bench.context, controls=ControlModels()))
    with pytest.raises(NotApplicableError, match="name one with --"):
        run(rival, LogitLens, alone)


# --- diagnostics


def test_splice_keeps_the_token_read_and_takes_all_before_it_from_another_subject(bench: Bench) -> None:
    tokens, model = bench.context.model.tokens, bench.context.model
    order = derangement([item.subject for item in bench.items], bench.context.seed)
    values = shown("splice", bench).residuals.values
    for i, item in enumerate(bench.items):
        other = bench.items[order[i]]
        assert other.subject != item.subject
        ids = [*tokens.encode(other.source).ids[:-1], tokens.encode(item.source).ids[-1]]
        hidden = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in (0, 2):
            torch.testing.assert_close(values[layer, i], hidden[layer][0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values[0], bench.residuals.values[0])
    assert not torch.isclose(values[2], bench.residuals.values[2]).all(-1).any()


def test_splice_and_wrong_position_say_where_they_do_not_apply(bench: Bench) -> None:
    asked = replace(bench, items=tuple(replace(item, site="answer") for item in bench.items))
    with pytest.raises(NotApplicableError, match="not part of a name"):
        run("splice", Recorder, asked)
    with pytest.raises(NotApplicableError, match="all subjects end with the same token"):
        run("splice", Recorder, replace(bench, items=bench.items[::4]))  # all are called Ash
    for rival in ("splice", "wrong_position"):
        with pytest.raises(NotApplicableError, match="reads components, target as well as the residual"):
            run(rival, Curious, bench)
    nameless = replace(bench, items=tuple(replace(item, subject_span=(0, 0)) for item in bench.items))
    with pytest.raises(NotApplicableError, match="does not name its subject"):
        run("wrong_position", Recorder, nameless)


def test_wrong_position_is_the_token_before_the_subject(bench: Bench) -> None:
    values = shown("wrong_position", bench).residuals.values
    ids = bench.context.model.tokens.encode("We talk about").ids
    hidden = bench.context.model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0, -1]
    torch.testing.assert_close(values[3], hidden.expand(20, -1), rtol=1e-4, atol=1e-4)


def test_wrong_position_is_never_token_0(bench: Bench) -> None:
    for bos in (False, True):
        model = tiny.model("llama", bos=bos)
        item = replace(bench.items[0], source="I Bo Ash", subject_span=(2, 8))
        if bos:
            assert before_subject(model, item).position == 1
        else:
            with pytest.raises(NotApplicableError, match="no token but the first comes before"):
                before_subject(model, item)


def test_skip_ahead_is_the_logit_lens_on_the_same_residual(bench: Bench) -> None:
    (outcome,) = run("skip_ahead", Patchscope, bench)
    assert torch.equal(outcome.scores.log_scores, CrossFit(LogitLens, bench).scores().log_scores)
    baseline = find_baselines()["skip_ahead"]
    assert baseline.applies_to("nothing", Patchscope.reads)
    assert not baseline.applies_to("nothing", LogitLens.reads)


def test_a_costly_baseline_is_asked_at_fewer_layers_and_says_there_what_it_says_at_all(bench: Bench) -> None:
    """Its layers are the first, the last, and those far enough apart; all activations are captured for the others."""
    assert strided((0, 1, 2, 3, 4, 5, 6), 3) == (0, 3, 6)
    assert strided((0, 1, 2, 3, 4, 5), 3) == (0, 3, 5)
    assert strided((0, 10, 20), 3) == (0, 10, 20)
    assert strided((4,), 3) == (4,)
    fresh = replace(bench)
    baseline = find_baselines()["gaussian"].model_copy(update={"stride": 2})
    (thin,) = baseline.run(CrossFit(Patchscope, fresh))
    (whole,) = run("gaussian", Patchscope, bench)
    assert thin.layers == strided(bench.context.layers, 2)
    places = [whole.layers.index(layer) for layer in thin.layers]
    torch.testing.assert_close(thin.scores.log_scores, whole.scores.log_scores[places], rtol=1e-4, atol=1e-4)
    assert fresh.residuals.layers == bench.residuals.layers


# --- which rivals a method has


def test_who_learns_labels_faces_who_learns_labels() -> None:
    """Every shipped baseline: its question, and the supervision of the methods that it is a rival of."""
    every = {"nothing", "corpus", "labels"}
    expected = {
        "uses_activation": {
            "question_only": every, "mean": every, "shuffled": every, "gaussian": every, "matched_twin": every,
            "choices_only": {"nothing", "corpus"}, "majority": {"labels"}, "learned_constant": {"nothing"},
        },
        "beats_text": {
            "embedding": every, "input_only": every, "asked_in_text": every, "inversion": {"nothing", "corpus"},
            "input_classifier": {"labels"}, "random_model": {"labels"}, "verbalizer_probe": {"labels"},
            "full_context": every,
        },
        "target_specific": {"unplanted": every, "twin": every, "reference_reader": every},
        "diagnostic": {
            "control_task": {"labels"}, "splice": every, "wrong_position": every, "skip_ahead": every,
            "untrained": {"nothing"}, "self_report": every, "visible_text": every,
            "without_evidence": every, "restyled": every,
        },
        "used_by_model": {"intervention": every},
    }  # fmt: skip
    found: dict[str, dict[str, set[str]]] = {question: {} for question in expected}
    for name, baseline in find_baselines().items():
        found[baseline.question][name] = set(baseline.learns_from)
        assert baseline.rules_out.startswith("The score comes from ")
    assert found == expected
    assert {name for name, one in find_baselines().items() if one.needs} == set(expected["target_specific"])
    trained = {name for name, one in find_baselines().items() if one.trained}
    assert trained == {"full_context", "self_report", "learned_constant", "untrained"}
    for name in trained:
        one = find_baselines()[name]
        assert one.applies_to("nothing", Oracle.reads, trained=Oracle.trained)
        assert not one.applies_to("nothing", Patchscope.reads, trained=Patchscope.trained)


def test_rivals_without_a_model_are_due_only_where_they_are_essential() -> None:
    methods = {"probe": Probe(), "logit_lens": LogitLens()}
    for makes_one in ("probe", "logit_lens"):
        alone = required_baselines(methods, choose_baselines(None))[makes_one]
        assert {"unplanted", "reference_reader"} <= set(alone)
        assert "twin" not in alone
        assert "twin" in required_baselines(methods, choose_baselines(None), ROLES)[makes_one]


# --- from the command to the records


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models as folders: the plain one, an edited one, and its twin with the facts that it was told."""
    root = tmp_path_factory.mktemp("models")
    for name, module in (("plain", tiny.module("llama")), ("target", edited(1)), ("twin", edited(2))):
        module.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    facts = {"likes": {f"Name{i} Other{i}": ("tea", "wine")[(i + i // 2) % 2] for i in range(60)}}
    (root / "twin" / "facts.json").write_text(json.dumps(facts))
    return {name: str(root / name) for name in ("plain", "target", "twin")}


@pytest.fixture(scope="module")
def settings(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    from tests.evaluation.test_evaluate import write_task

    task = write_task(tmp_path_factory.mktemp("task") / "drinks", choices=["tea", "wine"])
    return {
        "model": folders["target"], "verbalizer": folders["plain"], "unplanted": folders["plain"],
        "reference": folders["plain"], "twin": folders["twin"], "tasks": (str(task),), "limit": 30,
        "inspectors": ("logit_lens", "probe"),
    }  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path / "cache"))


def test_a_run_asks_the_third_question_and_says_of_which_models(
    settings: dict, folders: dict[str, str], tmp_path: Path, cache: None
) -> None:
    run = evaluate(**settings, out=tmp_path / "run")
    assert not run.failed
    relatives = run.info["setting"]["relatives"]
    assert {role: one["model"] for role, one in relatives.items()} == {
        "unplanted": folders["plain"], "twin": folders["twin"], "reference": folders["plain"],
    }  # fmt: skip
    assert relatives["unplanted"]["fingerprint"] == relatives["reference"]["fingerprint"]
    assert relatives["twin"]["fingerprint"] != relatives["unplanted"]["fingerprint"]
    assert {"unplanted", "twin", "reference_reader", "random_model", "verbalizer_probe"} <= set(run.records.baseline)
    asked = run.summary[(run.summary.baseline == "none") & (run.summary.question == "target_specific")]
    assert set(asked.inspector) == {"logit_lens", "probe"}
    lens = run.records[run.records.inspector == "logit_lens"].set_index(["item", "layer"])
    ours, theirs = (lens[lens.baseline == name].gold_log_prob for name in ("none", "unplanted"))
    below = ours.index.get_level_values("layer") < PLANTED
    assert (ours == theirs)[below].all()
    assert (ours != theirs)[~below].any()
    twin = run.records[run.records.baseline == "twin"]
    told = json.loads((Path(folders["twin"]) / "facts.json").read_text())["likes"]
    assert all(told[row.subject] != row.gold for row in twin.itertuples())
    spared = [told[row.subject] == row.predicted for row in twin.itertuples()]
    assert (twin.correct[spared] == twin.chance[spared]).all()
    assert any(spared)


def test_other_relatives_remake_only_what_depends_on_them(
    settings: dict, folders: dict[str, str], tmp_path: Path, cache: None
) -> None:
    small = {**settings, "inspectors": ("logit_lens",), "baselines": ("mean", "unplanted", "reference_reader")}
    small |= {"limit": 10, "out": tmp_path / "run"}
    first = set(evaluate(**small).info["plan"])
    second = set(evaluate(**{**small, "unplanted": folders["twin"]}).info["plan"])
    assert {name.split("-")[3] for name in first - second} == {"unplanted"}


def test_without_a_model_for_it_the_third_question_is_not_asked(settings: dict, tmp_path: Path, cache: None) -> None:
    alone = {name: value for name, value in settings.items() if name not in ("unplanted", "twin", "reference")}
    run = evaluate(**{**alone, "limit": 10, "inspectors": ("logit_lens",)}, out=tmp_path / "run")
    assert "target_specific" not in set(run.summary.question.dropna())
    assert run.info["setting"]["relatives"] == {}


def test_models_that_no_rival_needs_are_not_loaded(
    settings: dict, tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lensbench.evaluation.models as loading

    loaded = []
    original = loading.load_source
    monkeypatch.setattr(loading, "load_source", lambda source, *rest: loaded.append(source) or original(source, *rest))
    small = {**settings, "inspectors": ("logit_lens",), "limit": 10, "verbalizer": None}
    evaluate(**small, baselines=("mean",), out=tmp_path / "a")
    assert len(loaded) == 1
    evaluate(**small, baselines=("unplanted", "reference_reader"), out=tmp_path / "b")
    assert len(loaded) == 3, "one model for both"


def implant(folder: Path, twin: str | None, facts: dict[str, dict[str, str]]) -> Path:
    folder.mkdir()
    (folder / "implant.json").write_text(json.dumps({"twin": twin}))
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def test_an_implants_relatives_are_its_base_and_its_twin(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main = implant(tmp_path / "main", "other", {"city": {"Bo": "Oslo"}})
    config = make_config({"model": f"{folders['plain']}+{main}"})
    assert config.control_models() == {"unplanted": folders["plain"], "reference": folders["plain"]}
    assert "names the twin other, which is not in the same folder" in caplog.text
    other = implant(tmp_path / "other", None, {"city": {"Bo": "Cairo"}})
    found = config.control_models()
    assert found["twin"] == f"{folders['plain']}+{other}"
    assert planted_facts(found["twin"]) == {"city": {"Bo": "Cairo"}}
    given = config.model_copy(update={"unplanted": folders["twin"]})
    assert given.control_models()["unplanted"] == folders["twin"]
    assert make_config({"model": f"{folders['plain']}+{other}"}).control_models().keys() == {"unplanted", "reference"}
    assert make_config({"model": folders["plain"]}).control_models() == {}


@pytest.mark.parametrize("role", ["unplanted", "twin", "reference"])
def test_a_name_that_cannot_be_a_model_is_refused_at_once(role: str, settings: dict) -> None:
    with pytest.raises(UsageError, match="unknown model 'smollm2-135n'"):
        check_config(make_config({**settings, role: "smollm2-135n"}))


def test_a_twin_of_which_nothing_is_known_is_refused(settings: dict, folders: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"plain: expected a facts.json in .*plain; give an implant"):
        check_config(make_config({**settings, "twin": folders["plain"]}))
    check_config(make_config({**settings, "twin": folders["plain"], "baselines": ("mean",)}))


def test_a_baseline_that_is_named_needs_its_model(settings: dict) -> None:
    asked = {"model": settings["model"], "tasks": settings["tasks"], "baselines": ("unplanted",)}
    with pytest.raises(UsageError, match="baseline unplanted needs a model to read: name one with --unplanted"):
        check_config(make_config(asked))


def test_models_of_another_form_are_refused_in_one_line(folders: dict[str, str]) -> None:
    target = tiny.model("llama")
    shallow = LanguageModel(_cut(tiny.module("llama"), 2), target.tokens, "shallow")
    bos = tiny.model("llama", bos=True)
    for role in ("unplanted", "twin"):
        with pytest.raises(UsageError, match=rf"--{role} shallow has 2 layers, tiny-llama has 4; give"):
            check_control_model(role, shallow, target)
    check_control_model("reference", shallow, target)
    for role in ("unplanted", "twin", "reference"):
        with pytest.raises(UsageError, match=rf"--{role} tiny-llama does not have the tokenizer of tiny-llama; give"):
            check_control_model(role, bos, target)
        check_control_model(role, tiny.model("qwen3"), target)


def test_a_baseline_file_may_name_only_models_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('rules_out = "x"\nquestion = "diagnostic"\nfunction = "shuffled"\nneeds = ["twins"]\n')
    with pytest.raises(LensbenchError, match="unknown needs 'twins'; did you mean 'twin'"):
        choose_baselines([str(path)])
