"""Interventions along what methods read: against a naive account, and on facts whose use is known."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lensbench import evaluate, testing
from lensbench.baselines.intervention import choose_donors, intervention
from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.probes.linear_probe import LinearProbe
from lensbench.inspectors.probes.mass_mean import MassMeanProbe
from lensbench.inspectors.probes.mdl_probe import MdlProbe
from lensbench.inspectors.probes.mlp_probe import MlpProbe
from lensbench.inspectors.probes.probe import Probe
from lensbench.models.activations import find_site
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.tokens import Tokens
from lensbench.results.samples import SummarySettings
from lensbench.results.used import (
    MOVES,
    NO_CEILING,
    NO_EFFECT,
    OPPOSITE,
    READABLE,
    Effects,
    used_blocks,
    used_verdict,
)
from lensbench.results.verdicts import USED, VERDICTS
from lensbench.tasks import load_task
from tests import tiny
from tests.bench_run import bench_summary

LAYERS = (0, 1, 2, 3, 4)
USED_VERDICT = VERDICTS[USED]
ANSWERS = ("milk", "rice", "tea", "wine")
TRACE, PLANTED = 1, 3
"""The layers from which on a trace of the answer, and the answer itself, are in the stream."""
SIZE = 8.0
"""Of the trace: enough to be read, in residuals of a length of 11."""
METHODS = (LogitLens, TunedLens, LinearProbe, MassMeanProbe, MdlProbe, Probe)
"""Methods that name directions."""


@cache
def bench_of(model: LanguageModel, site: str = "t2") -> Bench:
    """Items about 96 names, whose answers have nothing to do with either part of a name."""
    firsts = ("Bo", "Cy", "Di", "Ed", "Fay", "Gus", "Hal", "Ivy", "Jo", "Kit", "Lou", "Max")
    lasts = ("Ash", "Birch", "Cole", "Dow", "Elm", "Fir", "Gray", "Hill")
    names = [f"{first} {last}" for first in firsts for last in lasts]
    random.Random(0).shuffle(names)
    return testing.make_bench(model, Corpus(model), testing.Subjects(tuple(names), ANSWERS), LAYERS, site)


@cache
def base() -> LanguageModel:
    """A random Llama whose last coordinates nothing reads."""
    module = tiny.roomy(4096)
    norms = [norm for block in module.model.layers for norm in (block.input_layernorm, block.post_attention_layernorm)]
    with torch.no_grad():
        for norm in (*norms, module.model.norm):
            norm.weight[-len(ANSWERS) :] = 0
    return LanguageModel(module, Tokens(tiny.tokenizer()), "base")


@cache
def planted() -> LanguageModel:
    """The base model with each item's answer written into the stream at layer 3, and a trace of it at layer 1.

    The trace lies in coordinates that no norm lets through: it goes along with the answer, and nothing depends on it.
    """
    model, bench = base(), bench_of(base())
    items = (*bench.items, *bench.train_items)
    texts = [find_site(model, item).ids for item in items]
    answers = [ANSWERS.index(item.answer) for item in items]
    module = copy.deepcopy(model.module)
    rows = torch.nn.functional.normalize(bench.context.target.answer_directions(ANSWERS), dim=1)
    tiny.write(module, PLANTED, texts, (40 * (rows - rows.mean(0)))[answers])
    tiny.write(module, TRACE, texts, (SIZE * torch.eye(64)[-len(ANSWERS) :])[answers])
    return LanguageModel(module, model.tokens, "planted")


def summary_of(bench: Bench, make: Callable[[], Inspector]) -> pd.DataFrame:
    """What a method's interventions show, beside baselines of *uses the activation*."""
    found = bench_summary(bench, make, ("shuffled", "mean", "intervention"))
    return found[(found["relation"] == "made_up") & (found["question"] == USED)].set_index("layer")


# --- what is used, and what is only readable --------------------------------------------------------------------------


def test_a_trace_that_goes_along_with_the_answer_is_readable_and_not_used() -> None:
    """Fisher's discriminant reads the trace alone, which varies least; the plain difference of means does not."""
    bench = bench_of(planted())
    by_trace = summary_of(bench, lambda: MassMeanProbe(covariance=True)).loc[PLANTED:]
    assert (by_trace["accuracy_corrected"] > 0.95).all()
    assert list(by_trace["verdict"]) == [READABLE] * 2
    by_means = summary_of(bench, MassMeanProbe)
    assert list(by_means["verdict"].loc[PLANTED:]) == [USED_VERDICT] * 2
    assert not (by_means["verdict"].loc[: PLANTED - 1] == USED_VERDICT).any(), "only the trace is there"


def test_what_is_not_there_yet_has_no_effect_even_along_the_direction_that_is_used_later() -> None:
    found = summary_of(bench_of(planted()), LogitLens)
    assert set(found["verdict"].loc[: PLANTED - 1]) <= {NO_EFFECT, NO_CEILING, "inconclusive"}
    assert found["verdict"].loc[PLANTED] == USED_VERDICT
    assert found["gap"].loc[4] == pytest.approx(1, abs=0.25), "at the last layer the lens is the model"


@pytest.mark.model
@pytest.mark.parametrize(
    ("implant", "words"),
    [("plain-08", ({NO_EFFECT, "inconclusive"}, {USED_VERDICT})), ("sham-08-other", ({NO_CEILING},) * 2)],
)
def test_facts_planted_in_a_real_model_are_used_from_their_layer_on(
    implant: str, words: tuple[set[str], set[str]], smollm2_folder: Path, tmp_path: Path
) -> None:
    """An edit of block 8 writes the cities; the sham writes other facts about the same people."""
    run = evaluate(
        f"smollm2-135m+{implant}", tasks="personas/city", inspectors="mass_mean_probe", sites="subject",
        subjects="planted", limit=48, layers="4,12", out=tmp_path / "run",
        baselines=("shuffled", "mean", "gaussian", "majority", "intervention"),
    )  # fmt: skip
    rows = run.summary[(run.summary["question"] == USED) & (run.summary["relation"] == "city")].set_index("layer")
    for layer, allowed in zip((4, 12), words, strict=True):
        assert rows.loc[layer, "verdict"] in allowed, layer


# --- against a naive account ------------------------------------------------------------------------------------------


def naive_log_probs(module: torch.nn.Module, ids: list[int], layer: int, position: int, vector: torch.Tensor | None):
    """The next token's log-probabilities, with a vector at one position of one layer's output; plain transformers."""
    blocks = module.model.layers

    def put(_module, given, made):
        hidden = made[0] if isinstance(made, tuple) else made
        hidden = hidden.clone()
        hidden[0, position] = vector
        return (hidden, *made[1:]) if isinstance(made, tuple) else hidden

    at = blocks[layer - 1] if layer else module.model.embed_tokens
    hook = at.register_forward_hook(put) if vector is not None else None
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0, -1]
    if hook:
        hook.remove()
    return logits.float().log_softmax(-1)


def naive_residual(module: torch.nn.Module, ids: list[int], layer: int, position: int) -> torch.Tensor:
    """One residual after a block, before the final norm: taken from a hook, as hidden_states are normed at the end."""
    kept: list[torch.Tensor] = []
    at = module.model.layers[layer - 1] if layer else module.model.embed_tokens
    hook = at.register_forward_hook(lambda _m, _g, made: kept.append(made[0] if isinstance(made, tuple) else made))
    with torch.no_grad():
        module(torch.tensor([ids]))
    hook.remove()
    return kept[0].reshape(len(ids), -1)[position].clone()


def naive_text(bench: Bench, place: int, layer: int) -> tuple[list[int], int]:
    """The tokens that ask about an item, and the position that is changed."""
    item, tokens = bench.items[place], bench.context.model.tokens
    if bench.relation.given:
        question = bench.question.replace("{subject}", item.subject)
        ids = list(tokens.encode(f"{item.source}\n{question}").ids)
        return ids, len(tokens.encode(item.source).ids) - 1
    if item.place != "subject":
        ids = list(tokens.encode(item.source).ids)
        return ids, len(ids) - 1
    before, after = bench.question.split("{subject}")
    ids = list(tokens.encode(before + item.subject + after).ids)
    return ids, len(tokens.encode(before + item.subject).ids) - 1


@pytest.mark.parametrize("site", ["subject", "t2"])
@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.name)
def test_each_intervention_is_a_plain_pass_with_one_vector_changed(make: type[Inspector], site: str) -> None:
    check_against_naive(CrossFit(make, bench_of(tiny.model("llama"), site)), (0, 2, 4), (0, 7, 20))


def bench_of_task(
    model: LanguageModel, name: str, site: str, layers: tuple[int, ...] = LAYERS, limit: int = 40
) -> Bench:
    task = load_task(name)
    (relation,) = task.relations.values()
    context = replace(bench_of(model).context, layers=layers)
    return Bench(context, relation, task.items(site, "test", limit), task.items(site, "train", limit))


def test_where_the_source_states_the_answer_the_question_follows_it_and_the_source_is_changed() -> None:
    bench = bench_of_task(tiny.model("llama"), "personas/city_given", "subject")
    check_against_naive(CrossFit(LogitLens, bench), (0, 2, 4), (0, 5))


def test_of_several_vectors_that_of_the_last_token_is_changed() -> None:
    check_against_naive(CrossFit(MassMeanProbe, bench_of(tiny.model("llama"), "t2/segment:3")), (2, 4), (0, 9))


def check_against_naive(method: CrossFit, layers: tuple[int, ...], chosen: tuple[int, ...]) -> None:
    bench = method.bench
    module, tokens, answers = bench.context.model.module, bench.context.model.tokens, bench.answers
    (found,) = intervention(method)
    swaps = choose_donors(bench.items, bench.context.seed, within_folds=method.learns_labels)
    asked = [tokens.answer_token(answer) for answer in answers]
    for number in chosen:
        item, donor = swaps[number].item, swaps[number].donor
        own, other = (answers.index(bench.items[i].answer) for i in (item, donor))
        fit = method.fit(bench.items[item].fold if method.learns_labels else None, bench.context.layers)
        for layer in layers:
            (ids, at), (their_ids, there) = naive_text(bench, item, layer), naive_text(bench, donor, layer)
            h, h_donor = naive_residual(module, ids, layer, at), naive_residual(module, their_ids, layer, there)
            vectors = fit.directions(layer, answers)
            d = (vectors[other] - vectors[own]).double()
            d = d / d.norm() if d.norm() else d  # nothing is learned where all residuals are the same token's
            along = (h.double() + (d @ (h_donor - h).double()) * d).float()
            for name, vector in (("clean", None), ("along", along), ("interchange", h_donor)):
                said = naive_log_probs(module, ids, layer, at, vector)[asked]
                place = (bench.context.layers.index(layer), found.scores.attempts.index(name), number)
                ours = found.scores.log_scores[place]
                assert torch.allclose(ours, said - said[own], atol=5e-4), (name, layer)
        assert found.items[number].answer == bench.items[donor].answer


@pytest.mark.model
def test_on_a_real_model_it_is_a_plain_pass_too(smollm2_folder: Path) -> None:
    model = load_model(str(smollm2_folder))
    for site in ("subject", "answer"):
        bench = bench_of_task(model, "attribute_extraction/country_continent", site, (0, 12, 24, 30), limit=12)
        check_against_naive(CrossFit(LogitLens, bench), (0, 12, 24), (0, 5))


# --- the directions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [LinearProbe, MassMeanProbe, MdlProbe, Probe], ids=lambda make: make.name)
def test_after_the_interchange_a_linear_method_reads_what_it_reads_at_the_donor(make: type[Inspector]) -> None:
    bench = bench_of(planted())
    method, answers = CrossFit(make, bench), bench.answers
    for swap in choose_donors(bench.items, 0, within_folds=True)[:8]:
        item, donor = bench.items[swap.item], bench.items[swap.donor]
        fit = method.fit(item.fold, LAYERS)
        own, other = answers.index(item.answer), answers.index(donor.answer)
        pair = bench.residuals.at_items([swap.item, swap.donor])
        for number, layer in enumerate(LAYERS):
            d = fit.directions(layer, answers)
            d = torch.nn.functional.normalize(d[other] - d[own], dim=0)
            changed = pair.values.clone()
            changed[number, 0] += d @ (pair.values[number, 1] - pair.values[number, 0]) * d
            before, after = (
                fit.inspect(Evidence(answers, layers=LAYERS, residuals=shown, n_items=2)).log_scores[number, 0]
                for shown in (pair, replace(pair, values=changed))
            )
            if make is LinearProbe:  # a cosine: its sign against the donor's is kept, its size is not
                assert (after[0, other] > after[0, own]) == (before[1, other] > before[1, own])
                continue
            wanted = before[1, other] - before[1, own]
            assert after[0, other] - after[0, own] == pytest.approx(float(wanted), abs=2e-3)


def test_the_directions_of_lenses_are_the_rows_that_their_logits_grow_along() -> None:
    bench = bench_of(tiny.model("llama"))
    module, answers = bench.context.model.module, bench.answers
    rows = [bench.context.model.tokens.answer_token(answer) for answer in answers]
    head = module.lm_head.weight[rows] * module.model.norm.weight
    for make in (LogitLens, TunedLens):
        fit = CrossFit(make, bench).fit(None, LAYERS)
        for layer in LAYERS[:-1]:
            expected = head if make is LogitLens else head + head @ fit.weight_[layer]
            assert torch.allclose(fit.directions(layer, answers), expected, atol=1e-4)


def test_every_method_that_names_directions_is_tried_here_or_needs_more_than_a_tiny_model() -> None:
    named = {name for name in find_inspectors() if load_inspector(name).directions is not Inspector.directions}
    others = {"affine_lens", "jacobian_lens", "attribute_lens", "mlp_probe"}
    assert named == {make.name for make in METHODS} | others


@pytest.mark.parametrize(
    ("make", "site", "why"),
    [(Patchscope, "t2", "names no direction"), (MlpProbe, "t2", "names no direction")],
)
def test_a_method_without_directions_is_not_asked(make: type[Inspector], site: str, why: str) -> None:
    with pytest.raises(NotApplicableError, match=why):
        intervention(CrossFit(make, bench_of(tiny.model("llama"), site)))


def test_donors_have_another_answer_of_the_choices_and_the_same_fold_where_fits_learn_labels() -> None:
    items = bench_of(tiny.model("llama")).items
    swaps = choose_donors(items, 0, within_folds=True)
    assert len(swaps) == len(items)
    for swap in swaps:
        item, donor = items[swap.item], items[swap.donor]
        assert donor.answer in set(item.choices) - {item.answer}
        assert donor.fold == item.fold
    assert swaps == choose_donors(items, 0, within_folds=False) != choose_donors(items, 1, within_folds=True)
    # One item with another answer is the only donor of all others: of those of other folds where that is allowed.
    few = [*(item for item in items if item.answer == "tea"), next(item for item in items if item.answer == "milk")]
    assert {swap.donor for swap in choose_donors(few, 0, within_folds=False)[:-1]} == {len(few) - 1}
    assert len(choose_donors(few, 0, within_folds=False)) == len(few)
    same = [item for item in few if item.fold == few[-1].fold]
    assert len(choose_donors(few, 0, within_folds=True)) == (len(same) if len(same) > 1 else 0)


# --- the verdict ------------------------------------------------------------------------------------------------------


def effects(along: float, random: float, ceiling: float, noise: float = 0.3, n: int = 60, seed: int = 0) -> Effects:
    """Effects of one relation at three layers: their means, and the spread over items."""
    draw = np.random.default_rng(seed)
    values = {"along": along, "random_direction": random, "interchange": ceiling}
    arrays = {name: mean + noise * draw.standard_normal((n, 3)) for name, mean in values.items()}
    names = np.array([f"s{i}" for i in range(n)], dtype=object)
    return Effects((0, 1, 2), arrays, names, np.array(["r"] * n, dtype=object), SummarySettings({}, draws=500))


@pytest.mark.parametrize(
    ("given", "readable", "word"),
    [
        ((2.0, 0.0, 4.0), True, USED_VERDICT),
        ((2.0, 0.0, 4.0), False, MOVES),
        ((0.0, 0.0, 4.0), True, READABLE),
        ((0.0, 0.0, 4.0), False, NO_EFFECT),
        ((0.15, 0.0, 4.0), True, READABLE),  # surely there, and surely as good as none
        ((2.0, 2.0, 4.0), True, "inconclusive"),  # a random direction does as well: the model is merely disturbed
        ((-2.0, 0.0, 4.0), True, OPPOSITE),
        ((2.0, 0.0, 0.0), True, NO_CEILING),
        ((0.0, 0.0, 0.3, 0.8), True, NO_CEILING),  # above 0, but hardly known: .3 [.02, .58] or so
        ((0.0, 0.0, -4.0), True, NO_CEILING),
        ((1e-5, 1e-5, 1e-5, 1e-7), True, NO_CEILING),  # rounding, surely in one direction
    ],
)
def test_the_word_says_what_was_seen(given: tuple[float, ...], readable: bool, word: str) -> None:
    found = used_verdict(effects(*given), np.full(3, readable))
    assert set(found) == {word}


def test_a_share_is_the_ratio_of_the_means_and_relations_weigh_the_same() -> None:
    one, two = effects(1.0, 0.0, 4.0), effects(3.0, 0.0, 4.0, n=20, seed=1)
    both = Effects(
        one.layers, {name: np.concatenate([one.values[name], two.values[name]]) for name in one.values},
        np.concatenate([one.subjects, two.subjects]), np.array(["r"] * 60 + ["q"] * 20, dtype=object), one.settings,
    )  # fmt: skip
    assert one.share("along").estimate == pytest.approx(one.values["along"].mean(0) / one.values["interchange"].mean(0))
    means = {name: (one.values[name].mean(0) + two.values[name].mean(0)) / 2 for name in one.values}
    assert both.share("along").estimate == pytest.approx(means["along"] / means["interchange"])


def test_a_total_is_given_only_over_all_relations_that_the_method_answered() -> None:
    key = {"model": "m", "verbalizer": "v", "task": "t", "site": "answer", "inspector": "lens", "baseline": "none"}
    rows = [
        {**key, "baseline": "intervention",
         "relation": "r", "subject": f"s{i}", "item": f"i{i}", "attempt": attempt, "layer": 0, "gold_log_prob": value}
        for i in range(30)
        for attempt, value in {"clean": 0.0, "along": 1.0 + i % 3, "random_direction": 0.0, "interchange": 4.0}.items()
    ]  # fmt: skip
    own = {
        **key,
        "rule": "fixed",
        "layer": np.array([0]),
        "question": "uses_activation",
        "verdict": "uses the activation",
    }
    for relations, told in ((1, ["r", "all"]), (2, ["r"])):
        blocks = [{**own, "relation": "r", "relations": 1}, {**own, "relation": "all", "relations": relations}]
        found = list(used_blocks(pd.DataFrame(rows), blocks, SummarySettings({})))
        assert [block["relation"] for block in found] == told
        assert [list(block["verdict"]) for block in found] == [[USED_VERDICT]] * len(told)


class Wrong(LogitLens):
    """Names directions that are none."""

    shape: tuple[int, ...] = ()

    def directions(self, layer, answers):
        return torch.ones(self.shape)


@pytest.mark.parametrize("shape", [(4, 1), (4, 31), (3, 32), (4,)])
def test_directions_of_another_shape_are_told(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "shape", shape)
    with pytest.raises(LensbenchError, match=r"logit_lens.directions\(0, ...\) returned shape .* = \(4, 32\)"):
        intervention(CrossFit(Wrong, bench_of(tiny.model("llama"))))


def test_the_weights_of_a_probe_are_found_far_from_the_origin() -> None:
    """Residuals have coordinates in the thousands, where a probe is sure of everything."""
    bench = bench_of(tiny.model("llama"))
    shift = torch.zeros(32)
    shift[:4] = 1000
    far = bench.with_captured(
        *(replace(one, values=one.values + shift) for one in (bench.residuals, bench.train_residuals))
    )
    for make in (MdlProbe, Probe, MassMeanProbe):
        near, there = (CrossFit(make, one).fit(0, LAYERS) for one in (bench, far))
        for layer in (2, 4):
            found = there.directions(layer, bench.answers)
            assert found is not None
            torch.testing.assert_close(found, near.directions(layer, bench.answers), rtol=2e-2, atol=2e-3)


def test_a_direction_that_is_none_is_seldom_called_used() -> None:
    """In 200 studies of 40 items with effects of either direction from the same distribution, which is often not 0."""
    used = [
        (used_verdict(effects(0.8, 0.8, 4.0, noise=1.5, n=40, seed=seed), np.ones(3, bool)) == USED_VERDICT)
        for seed in range(200)
    ]
    assert np.any(used, axis=1).mean() <= 0.05


def test_a_run_has_the_fourth_question_in_its_tables_and_none_of_the_other_figures_changes(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    asked = {
        "model": str(tiny_llama_folder), "tasks": ["attribute_extraction/country_continent"], "limit": 40,
        "inspectors": ["logit_lens", "mass_mean_probe", "patchscope"], "layers": "all", "sites": ["answer"],
    }  # fmt: skip
    rivals = ["shuffled", "mean", "question_only"]
    plain = evaluate(**asked, baselines=rivals, out=tmp_path / "plain")
    more = evaluate(**asked, baselines=[*rivals, "intervention"], out=tmp_path / "more")
    rest = more.summary[more.summary["question"] != USED].reset_index(drop=True)
    pd.testing.assert_frame_equal(plain.summary, rest)
    assert set(more.summary[more.summary["question"] == USED]["inspector"]) == {"logit_lens", "mass_mean_probe"}
    told = more.metrics[more.metrics["baseline"] == "intervention"]
    assert {"interchange_log_odds"} <= set(told["metric"]) <= {"share_of_interchange", "interchange_log_odds"}
    others = more.metrics[more.metrics["baseline"] != "intervention"].reset_index(drop=True)
    pd.testing.assert_frame_equal(plain.metrics, others)
    assert "used_by_model_verdict" in more.best
