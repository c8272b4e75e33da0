"""Every cheat is a real attempt, is caught by the check that its entry names, and is praised by no verdict."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from lensbench import testing
from lensbench.baselines.spec import find_baselines
from lensbench.calibration import cheats
from lensbench.calibration.cheats import CHEATS, Cheat, catch, cheat_of, praised
from lensbench.calibration.stateful_cheats import NearestNeighbour
from lensbench.errors import UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import ControlModels
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.isolation import SealedError, sealed
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.evidence import Evidence, Training, WithheldError
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import VOCAB
from lensbench.models.prompting import score_next_tokens
from lensbench.models.tokens import CARRIER, Tokens
from tests import tiny
from tests.bench_run import bench_summary

ANSWERS = ("milk", "rice", "tea", "wine")
SUBJECTS = 64
PLANTED = 3
LAYERS = (0, 1, 2, 3, 4)
QUESTION = "They say that {subject} likes"

KEPT = {"check_state_is_own", "check_folds_are_apart", "check_same_twice"}

# --- a small model in which facts are planted at layer 3 --------------------------------------------------------------


@cache
def base() -> LanguageModel:
    """A random Llama whose third MLP has room for a few hundred keys."""
    return LanguageModel(tiny.roomy(512), Tokens(tiny.tokenizer()), "base")


@cache
def names() -> tuple[str, ...]:
    """Names of one token each: the embedding at layer 0 is then the name."""
    tokens = base().tokens
    said = {answer.split()[0] for answer in ANSWERS}
    words = (tokens.decode([i]) for i in range(VOCAB))
    found = [w.strip() for w in words if w.startswith(" ") and w.strip().isalpha() and len(w) > 3]
    alone = [w for w in found if w not in said and len(tokens.encode("x " + w).ids) == len(tokens.encode("x").ids) + 1]
    assert len(alone) >= SUBJECTS
    return tuple(alone[:SUBJECTS])


def bench_of(target: LanguageModel, verbalizer: LanguageModel | None = None) -> Bench:
    bench = testing.make_bench(target, Corpus(target), testing.Subjects(names(), ANSWERS), LAYERS)
    return bench if verbalizer is None else replace(bench, context=replace(bench.context, verbalizer=verbalizer))


@cache
def planted(*, told: bool = False, long: bool = False) -> LanguageModel:
    """The base model with an edit of the third block's down-projection that writes each subject's answer.

    Args:
        told: whether it also says the answer when it is asked in text.
        long: whether what is written is longer for some answers than for others.
    """
    model, bench = base(), bench_of(base())
    items = (*bench.items, *bench.train_items)
    texts = [item.source for item in items] + [QUESTION.replace("{subject}", item.subject) for item in items if told]
    answers = [ANSWERS.index(item.answer) for item in items] * (2 if told else 1)
    edited = copy.deepcopy(model.module)
    rows = torch.nn.functional.normalize(bench.context.target.answer_directions(ANSWERS), dim=1)
    size = torch.tensor([0.5, 1.0, 2.0, 4.0]) if long else torch.ones(4)
    values = (40 * size[:, None] * (rows - rows.mean(0)))[answers]
    tiny.write(edited, PLANTED, [model.tokens.encode(text).ids for text in texts], values)
    return LanguageModel(edited, model.tokens, "planted")


# --- a small run ------------------------------------------------------------------------------------------------------


@cache
def known() -> dict:
    return find_baselines()


def accuracy(summary: pd.DataFrame, baseline: str = "none", rule: str = "fixed") -> np.ndarray:
    rows = summary[(summary.baseline == baseline) & (summary.rule == rule) & (summary.relation == "made_up")]
    return rows.drop_duplicates("layer").accuracy_corrected.to_numpy()


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_entry_names_a_check_that_there_is() -> None:
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS) == 20
    for cheat in CHEATS:
        assert cheat.caught_by in (testing.__all__ if cheat.by_check else known()), cheat.name
        assert cheat_of(cheat.name) is cheat
        # A user may run one, and no list offers it.
        assert load_inspector(f"lensbench.calibration.cheats:{cheat.make.__name__}") is cheat.make
        assert cheat.name not in find_inspectors()
    with pytest.raises(UsageError, match="cheat_eco"):
        cheat_of("cheat_eco")


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_the_checks_catch_what_they_must_and_nothing_else(cheat: Cheat) -> None:
    found, expected = set(catch(cheat)), {cheat.caught_by} if cheat.by_check else set()
    # What a method keeps between calls may show in several of these.
    assert expected <= found <= (expected | KEPT if expected & KEPT else expected)


# --- caught by a check: what they would score without it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "layers", "right"),
    [
        (LogitLens, LAYERS, (3, 4)),
        (cheats.LaterLayer, LAYERS, LAYERS),
        (cheats.NextLayer, LAYERS, (2, 3, 4)),
        (cheats.SameAtEveryLayer, (0, 1, 3, 4), (0, 1, 3, 4)),
    ],
)
def test_readers_of_later_layers_find_the_fact_before_it_is_there(
    make: type[Inspector], layers: tuple[int, ...], right: tuple[int, ...]
) -> None:
    bench = bench_of(planted())
    found = accuracy(bench_summary(replace(bench, context=replace(bench.context, layers=layers)), make, ["shuffled"]))
    assert tuple(layer for layer, score in zip(layers, found, strict=True) if score > 0.95) == right
    assert all(score < 0.5 for layer, score in zip(layers, found, strict=True) if layer not in right)


def test_a_layer_read_by_one_too_far_shows_in_any_subset_of_layers() -> None:
    bench = testing.small_bench()
    for layers in ((0, 1), (3, 4), (0, 2, 3)):
        found = testing.conformance(cheats.NextLayer, replace(bench, context=replace(bench.context, layers=layers)))
        assert found["check_layers_are_local"], layers
    apart = replace(bench, context=replace(bench.context, layers=(0, 2, 4)))
    assert testing.conformance(cheats.NextLayer, apart)["check_layers_are_local"] is None, "it gets no next layer"


def test_dealing_answers_out_over_the_batch_frees_a_lens_of_its_bias() -> None:
    """A weak lens that likes one answer too much for all items, as lenses do."""
    bench = bench_of(planted())
    at = bench.residuals.values[PLANTED]
    liked = torch.nn.functional.normalize(bench.context.target.answer_directions(ANSWERS)[:1], dim=1)
    noise = torch.randn(at.shape, generator=torch.Generator().manual_seed(0))
    weak = at + 6 * at.std() * (noise + 3 * liked)
    weak_everywhere = replace(bench.residuals, values=weak.expand(len(LAYERS), -1, -1).clone())
    bench = bench.with_captured(weak_everywhere, bench.train_residuals)

    def raw(make: type[Inspector]) -> float:
        summary = bench_summary(bench, make, ["mean"])
        return float(summary[(summary.baseline == "none") & (summary.layer == 0)].accuracy.iloc[0])

    assert raw(LogitLens) + 0.2 < raw(cheats.ClustersTheBatch)


def test_the_handle_of_fit_runs_no_model_but_python_hides_nothing() -> None:
    """The target knows what the verbalizer does not: asked in text it would win every question."""
    bench = bench_of(planted(told=True), base())
    public = {name for name in dir(bench.context.target) if not name.startswith("_")}
    assert not any(isinstance(vars(bench.context.target).get(name), LanguageModel | torch.nn.Module) for name in public)
    with pytest.raises(SealedError, match="cheat_asks_the_target ran planted without declaring it"):
        CrossFit(cheats.AsksTheTarget, bench).scores()
    training = bench.training(cheats.AsksTheTarget(), None, LAYERS, None)
    cheat = cheats.AsksTheTarget().fit(bench.context.target, base(), training)
    scores = cheat.inspect(bench.evidence(cheat.reads, range(SUBJECTS), LAYERS))
    gold = torch.tensor([ANSWERS.index(item.answer) for item in bench.items])
    assert (scores.log_scores[0, 0].argmax(1) == gold).all(), "at layer 0 it decodes the name, and the target knows"
    assert accuracy(bench_summary(bench, cheats.Echo, ["shuffled"]))[0] < 0.5, "the verbalizer does not"
    # Where the verbalizer is the target nothing can be told apart, and a model without the fact decides.
    one = bench_of(planted(told=True))
    one = replace(one, context=replace(one.context, controls=ControlModels({"unplanted": base(), "reference": base()})))
    summary = bench_summary(one, cheats.AsksTheTarget, ["unplanted", "reference_reader"])
    assert summary[summary.layer == 0].verdict.str.contains("within .10 of unplanted").any()
    assert praised(summary, "cheat_asks_the_target") == {}


def test_who_loses_on_purpose_to_itself_would_be_privileged() -> None:
    """No rival that runs on its fit can catch it: hence the check."""
    bench = bench_of(planted(told=True))
    bench = replace(
        bench, context=replace(bench.context, controls=ControlModels({"unplanted": base(), "reference": base()}))
    )
    rivals = ["unplanted", "reference_reader"]
    assert praised(bench_summary(bench, cheats.Echo, rivals), "cheat_echo") == {}
    assert praised(bench_summary(bench, cheats.SparesItsRivals, rivals), "cheat_spares_its_rivals") == {
        "target_specific": "privileged"
    }
    assert "check_same_twice" in catch(cheat_of("cheat_spares_its_rivals"))


def about_nothing() -> Bench:
    """The planted model, asked for facts that nobody planted: answers are dealt out at random."""
    bench = bench_of(planted(), base())
    models = ControlModels({"unplanted": base(), "reference": base()})
    answers = random.Random(0).choices(ANSWERS, k=SUBJECTS)
    items, train_items = (
        tuple(replace(item, answer=answer) for item, answer in zip(group, answers, strict=True))
        for group in (bench.items, bench.train_items)
    )
    return replace(bench.with_answers(items, train_items), context=replace(bench.context, controls=models))


@pytest.mark.parametrize(
    ("make", "right", "verdict"),
    [(NearestNeighbour, False, None), (cheats.SharedIndex, True, None), (cheats.TurncoatIndex, True, "privileged")],
)
def test_notes_that_folds_share_make_right_and_even_privileged(
    make: type[Inspector], right: bool, verdict: str | None
) -> None:
    """Names, labels and activations have nothing to do with each other: an honest probe is at chance."""
    summary = bench_summary(about_nothing(), make, ["unplanted", "reference_reader", "shuffled"])
    assert (accuracy(summary)[1:] > 0.4).all() == right
    assert praised(summary, make.name).get("target_specific") == verdict


def test_an_honest_neighbour_passes_all_checks() -> None:
    assert set(testing.check_inspector(NearestNeighbour)) >= KEPT


def test_state_that_a_method_keeps_of_another_model_is_noticed() -> None:
    """No label leaks here: a method that learns none reads with the head of whatever model was fitted last."""

    class LastHead(LogitLens):
        name = "last_head"

        def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> Inspector:
            type(self).target_ = target
            return self

    with pytest.raises(AssertionError, match="a fit scores otherwise once another was made on another model"):
        testing.check_state_is_own(LastHead, testing.small_bench())


def test_what_is_not_declared_is_not_there() -> None:
    with pytest.raises(WithheldError, match="has no `texts`: the method does not declare `text` in `reads`"):
        CrossFit(cheats.UndeclaredText, testing.small_bench()).scores()
    with pytest.raises(AssertionError, match=r"fails on what it declares to read \(activation, question\): Withheld"):
        testing.check_inspector(cheats.UndeclaredText)


# --- caught by a rival ------------------------------------------------------------------------------------------------


def unbalanced(bench: Bench) -> Bench:
    """More than half of the subjects have the first answer."""

    def turned(items: Sequence) -> tuple:
        return tuple(replace(item, answer=ANSWERS[0]) if i // 4 % 2 else item for i, item in enumerate(items))

    return replace(bench, items=turned(bench.items), train_items=turned(bench.train_items))


def centred(bench: Bench) -> Bench:
    """Every answer is the middle of a set of three, by how likely the words are."""
    words = ("milk", "rice", "tea", "wine", "house", "bread")
    prior = score_next_tokens(base(), [CARRIER], [base().tokens.answer_token(word) for word in words]).log_probs[0]
    ranked = [words[i] for i in prior.argsort()]
    sets = tuple(tuple(sorted(ranked[start::2])) for start in (0, 1))
    relation = replace(bench.relation, choice_sets=sets)

    def turned(items: Sequence) -> tuple:
        return tuple(replace(item, choices=sets[i % 2], answer=ranked[i % 2 :: 2][1]) for i, item in enumerate(items))

    return replace(bench, relation=relation, items=turned(bench.items), train_items=turned(bench.train_items))


@dataclass(frozen=True)
class World:
    """Where a cheat scores well, and rivals that it beats there."""

    bench: Callable[[], Bench]
    beaten: tuple[str, ...]
    layer: int
    least: float


WORLDS = {
    "cheat_echo": World(lambda: bench_of(planted(told=True)), ("shuffled", "mean"), 0, 0.95),
    "cheat_own_knowledge": World(lambda: bench_of(planted(told=True)), ("choices_only",), 0, 0.95),
    "cheat_best_constant": World(lambda: unbalanced(bench_of(planted())), (), 0, 0.6),
    "cheat_choice_set": World(lambda: centred(bench_of(base())), (), 0, 0.95),
    "cheat_norm": World(lambda: bench_of(planted(long=True)), ("shuffled", "majority", "mean"), 3, 0.75),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_cheat_that_scores_well_is_matched_by_the_rival_of_its_entry(name: str) -> None:
    cheat, world = cheat_of(name), WORLDS[name]
    bench = world.bench()
    question = known()[cheat.caught_by].question
    summary = bench_summary(bench, cheat.make, [*world.beaten, cheat.caught_by])
    rows = summary[(summary.baseline == "none") & (summary.layer == world.layer) & (summary.relation == "made_up")]
    assert (rows.accuracy >= world.least).all()
    verdicts = rows.set_index("question").verdict
    assert verdicts[question] == f"within .10 of {cheat.caught_by}"
    assert question not in praised(summary, name)
    assert cheat.caught_by in catch(cheat, summary)
    if world.beaten:
        # Without that rival it would have been praised.
        without = bench_summary(bench, cheat.make, world.beaten)
        here = without[(without.layer == world.layer) & (without.baseline == "none") & (without.relation == "made_up")]
        assert set(here.verdict) == {"uses the activation"}


def test_the_best_of_many_attempts_is_right_of_nearly_everything_and_gets_no_verdict() -> None:
    bench = bench_of(base())
    summary = bench_summary(bench, cheats.BestOfMany, ["shuffled"])
    assert (accuracy(summary, rule="oracle") > 0.95).all()
    assert (accuracy(summary, "shuffled", rule="oracle") > 0.95).all()
    assert (accuracy(summary, rule="selected") < 0.5).all()
    assert set(summary[summary.rule == "oracle"].verdict) == {""}
    assert praised(summary, "cheat_best_of_many") == {}


def test_who_memorises_subjects_knows_those_it_has_seen_whatever_their_label() -> None:
    bench = bench_of(planted())
    summary = bench_summary(bench, cheats.MemorisesSubjects, ["control_task", "shuffled"])
    seen, random = (accuracy(summary, "control_task", f"{labels}_labels_seen") for labels in ("true", "random"))
    assert seen[0] == random[0] == 1.0, "at layer 0 the name is the residual"
    assert (accuracy(summary, "control_task", "random_labels_held_out") < 0.5).all()
    assert accuracy(summary)[0] == 0.25, "whom it has not seen it does not know"
    assert praised(summary, "cheat_memorises_subjects") == {}
    assert "control_task" in catch(cheat_of("cheat_memorises_subjects"), summary)


def test_a_rival_that_is_surely_beaten_has_caught_nobody() -> None:
    bench = bench_of(planted(long=True))
    summary = bench_summary(bench, cheats.NormReader, ["shuffled", "gaussian"])
    cheat = cheat_of("cheat_norm")
    assert catch(cheat, summary)["gaussian"].startswith("at its best ")
    assert catch(replace(cheat, caught_by="shuffled"), summary) == {}
    assert catch(replace(cheat, caught_by="mean"), summary) == {}, "it was not run"
    lens = replace(cheat, make=LogitLens, caught_by="control_task")
    assert catch(lens, summary) == {}


@pytest.mark.parametrize("cheat", [cheat for cheat in CHEATS if not cheat.by_check], ids=lambda cheat: cheat.name)
def test_no_cheat_is_privileged(cheat: Cheat) -> None:
    """Target and verbalizer are one model that holds the facts, the rivals' models lack them."""
    bench = bench_of(planted(told=True))
    bench = replace(
        bench, context=replace(bench.context, controls=ControlModels({"unplanted": base(), "reference": base()}))
    )
    named = {cheat.caught_by} - {"control_task"}
    summary = bench_summary(
        bench, cheat.make, ["unplanted", "reference_reader", "shuffled", *sorted(named - {"shuffled"})]
    )
    assert "target_specific" not in praised(summary, cheat.name)


def test_an_honest_lens_is_privileged_where_the_fact_is_and_nowhere_before() -> None:
    bench = bench_of(planted(), base())
    bench = replace(
        bench, context=replace(bench.context, controls=ControlModels({"unplanted": base(), "reference": base()}))
    )
    summary = bench_summary(bench, LogitLens, ["unplanted", "reference_reader", "shuffled", "gaussian", "input_only"])
    own = summary[(summary.question == "target_specific") & (summary.baseline == "none") & (summary.relation == "all")]
    assert set(own[own.verdict == "privileged"].layer) == {3, 4}


# --- the checks themselves --------------------------------------------------------------------------------------------


def test_a_sealed_model_keeps_its_head_open_and_is_opened_again() -> None:
    model = tiny.model("llama")
    last = torch.randn(2, model.d_model)
    before = model.unembed(last)
    with sealed(model, "someone"):
        torch.testing.assert_close(model.unembed(last), before)
        with pytest.raises(SealedError, match="someone ran tiny-llama"):
            score_next_tokens(model, ["They say something new"], [5])
    assert score_next_tokens(model, ["They say something new"], [5]).log_probs.shape == (1, 1)


class Counted(Inspector):
    """Makes two attempts."""

    name = "counted"
    reads = frozenset()
    tries = "2 of a kind"

    def inspect(self, evidence: Evidence) -> Scores:
        return Scores(("a", "b"), torch.zeros(1, 2, evidence.n_items, len(evidence.answers)))


@pytest.mark.parametrize(
    ("tries", "fits"), [("2 of a kind", True), ("one a thing", True), ("one", False), ("3", False)]
)
def test_attempts_are_as_many_as_declared(tries: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "tries", tries)
    found = testing.conformance(Counted)
    assert (found["check_attempts"] is None) == fits
    assert [name for name, what in found.items() if what] == ([] if fits else ["check_attempts"])


@pytest.mark.parametrize("leak", ["texts", "question", "runs", "components", "residuals"])
def test_a_harness_that_leaks_is_noticed(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = testing.small_bench()
    whole = bench.evidence(frozenset({"text", "question", "target", "components", "activation"}), range(2), (0,))
    real = Bench.evidence

    def leaking(self: Bench, *arguments: object) -> Evidence:
        return Evidence(**{**vars(real(self, *arguments)), leak: getattr(whole, leak)})

    monkeypatch.setattr(Bench, "evidence", leaking)
    with pytest.raises(AssertionError, match="which it did not declare"):
        testing.check_sources_are_withheld(Counted, bench)
