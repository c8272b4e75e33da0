"""Calibration: what is said of methods on facts that were planted, and on facts that were not."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lensbench.calibration import calibrate as calibrating
from lensbench.calibration import cheats
from lensbench.calibration.calibrate import RESULT, Calibration, CalibrationSettings, Caught, calibrate
from lensbench.calibration.findings import PRIVILEGED, TrialFinding, findings, summary_if_calibrated
from lensbench.calibration.trials import Trial, find_trials
from lensbench.cli.commands.calibrate import _spans
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.evaluate import evaluate
from lensbench.evaluation.plan import make_inspectors, method_version
from lensbench.implants import measuring
from lensbench.implants.planting import ImplantSpec, implant
from lensbench.models.edits import read_edits, write_edits
from lensbench.results.calibrations import calibration_of
from lensbench.results.change_point import Emergence
from lensbench.results.verdicts import VERDICTS
from lensbench.runs.run import load_run
from lensbench.tasks import data_root, load_task
from tests import tiny

LAYER, LAYERS = 2, 4
NONE = Emergence(None, None, None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with a wide MLP, which can hold 120 names, and implants in it."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny.tokenizer())  # it gets more tokens, and others share the first
    task = load_task("personas")
    # A token of its own for each value, and for each last name: a random network carries little from token to token.
    names = {fact.subject.split()[-1] for fact in task.facts if fact.relation in ("city", "city_never")}
    tokenizer.add_tokens([f" {word}" for word in (*task.relations["city"].answers, *sorted(names))])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=1024, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.15, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(root / "cache"))
        for name, value in (("ASKED", 1), ("MANY", 4), ("SOME", 2), ("PROSE_TOKENS", 256)):
            patch.setattr(measuring, name, value)
        patch.setattr("lensbench.implants.designs.COVARIANCE_TOKENS", 512)
        order = ImplantSpec(str(root / "base"), LAYER, attributes=("city",), steps=3, weight=0.0001, twin="twin")
        implant(order, root / "plain")
        implant(replace(order, world="twin", twin="plain"), root / "twin")
        implant(replace(order, design="sham", twin=None), root / "sham")
    for name in ("plain", "twin", "sham"):
        # Written loud enough to be told from 120 random names.
        write_edits(root / name, [replace(edit, left=40 * edit.left) for edit in read_edits(root / name)])
    return root


@pytest.fixture(scope="module")
def calibrated(world: Path) -> tuple[Calibration, Path]:
    """A calibration of a probe, which finds what was planted, and of the logit lens, which does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(world / "cache"))
        asked = CalibrationSettings(
            model=str(world / "base"), inspectors=("mass_mean_probe", "logit_lens"),
            implants=(str(world / "plain"), str(world / "sham")), cheats=False, limit=100, permutations=5,
        )  # fmt: skip
        return calibrate(asked, world / "out"), world / "out"


def test_a_planted_fact_is_found_where_it_is_and_not_before(calibrated: tuple[Calibration, Path]) -> None:
    result, _ = calibrated
    (one,) = result.select("mass_mean_probe", "plain")
    assert one.compared > 0
    assert one.differing == 0
    assert one.found
    assert not one.too_early
    assert one.emergence.contains(LAYER)
    assert one.accuracy > one.unplanted + 0.15
    assert result.power("mass_mean_probe") == (1, 1)


def test_nothing_is_claimed_that_is_not_there(calibrated: tuple[Calibration, Path]) -> None:
    """Names that were never planted, and an edit that writes the same into every name."""
    result, _ = calibrated
    absent = [one for one in result.findings if not one.planted]
    assert {(one.trial, one.relation) for one in absent} == {("plain", "city_never"), ("sham", "city")}
    assert not any(one.privileged for one in absent)
    assert result.problems() == []


def test_a_model_without_the_fact_is_not_privileged_in_the_target_s_place(
    calibrated: tuple[Calibration, Path],
) -> None:
    result, _ = calibrated
    tried = {(one.trial, one.method, one.model) for one in result.stand_ins}
    assert {("plain", "mass_mean_probe", "unplanted"), ("plain", "mass_mean_probe", "random_model")} <= tried
    assert not any(one.privileged for one in result.stand_ins)
    found = replace(result, stand_ins=(replace(result.stand_ins[0], privileged=(3,)),))
    assert "in the target's place: privileged at [3]" in found.problems()[0]


def test_facts_dealt_anew_are_no_facts(calibrated: tuple[Calibration, Path]) -> None:
    """What learns from labels learns anew; what does not keeps what it said."""
    result, _ = calibrated
    alarms = {one.method: one for one in result.alarms}
    assert set(alarms) == {"mass_mean_probe", "logit_lens"}
    assert alarms["mass_mean_probe"].refitted
    assert not alarms["logit_lens"].refitted
    assert all(one.rate == 0 for one in alarms.values())


def test_seed_batch_size_and_order_change_no_verdict(world: Path, tmp_path: Path, monkeypatch) -> None:
    """Which random rival matches may change with the seed; what holds does not."""
    monkeypatch.setenv("LENSBENCH_CACHE", str(world / "cache"))
    backwards = tmp_path / "personas"
    shutil.copytree(data_root() / "tasks" / "personas", backwards)
    lines = (backwards / "items.jsonl").read_text().splitlines()
    (backwards / "items.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    common = {
        "model": f"{world / 'base'}+{world / 'plain'}", "verbalizer": str(world / "base"), "sites": "subject",
        "inspectors": "mass_mean_probe", "layers": f"{LAYER - 1},{LAYER},{LAYERS}",
    }  # fmt: skip
    changes = ({}, {"seed": 1}, {"memory": "1MB"}, {"tasks": f"{backwards}/city"})
    found = []
    for i, change in enumerate(changes):
        settings = {"tasks": "personas/city", **common, **change}
        rows = summary_if_calibrated(evaluate(**settings, out=tmp_path / str(i)))
        rows = rows[(rows["baseline"] == "none") & (rows["rule"] == "fixed") & (rows["relation"] != "all")]
        held = rows[rows["verdict"].isin(VERDICTS.values())]
        found.append(set(zip(held["relation"], held["layer"], held["verdict"], strict=True)))
    assert {layer for _, layer, verdict in found[0] if verdict == PRIVILEGED} == {LAYER, LAYERS}
    assert all(one == found[0] for one in found[1:])


def test_answers_follow_the_target_by_whom_ever_they_are_read(calibrated: tuple[Calibration, Path]) -> None:
    result, _ = calibrated
    rows = [one for one in result.whose if one.method == "mass_mean_probe"]
    assert {one.verbalizer for one in rows} == {"base", "target", "twin"}
    for one in rows:
        assert one.target + one.twin + one.neither == pytest.approx(1)
        # A probe learns the target's labels, and asks no verbalizer.
        assert (one.layer or 0) < LAYER or one.target > one.twin


def test_the_result_is_kept_for_the_very_version(
    calibrated: tuple[Calibration, Path], world: Path, monkeypatch
) -> None:
    result, out = calibrated
    monkeypatch.setenv("LENSBENCH_CACHE", str(world / "cache"))
    written = json.loads((out / RESULT).read_text())
    assert len(written["findings"]) == len(result.findings)
    kept = calibration_of(result.versions["mass_mean_probe"])
    assert kept is not None
    assert (kept.found, kept.tried) == (1, 1)
    assert calibration_of("another") is None
    info = load_run(out / "runs" / "plain").info
    assert set(info["setting"]["relatives"]) == {"unplanted", "twin", "reference"}


def test_doing_it_again_does_nothing_again(calibrated: tuple[Calibration, Path], world: Path, monkeypatch) -> None:
    result, out = calibrated
    monkeypatch.setenv("LENSBENCH_CACHE", str(world / "cache"))
    records = {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")}
    asked = CalibrationSettings(
        model=str(world / "base"), inspectors=("mass_mean_probe", "logit_lens"),
        implants=(str(world / "plain"), str(world / "sham")), cheats=False, limit=100, permutations=0,
    )  # fmt: skip
    again = calibrate(asked, out)
    assert again.findings == result.findings
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")} == records


def test_settings_make_another_version() -> None:
    from lensbench.evaluation.config import make_config

    plain, other = (
        method_version(
            make_inspectors(make_config({"inspectors": ("patchscope",), "parameters": parameters}))["patchscope"]()
        )
        for parameters in ({}, {"patchscope": {"target_layers": [3]}})
    )
    assert plain != other


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (CalibrationSettings(model="some/model"), "no implants ship for some/model"),
        (CalibrationSettings(implants=("nothing",)), "unknown implant 'nothing'"),
    ],
)
def test_what_is_not_there_is_told_first(asked: CalibrationSettings, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        calibrate(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_calibration_needs_a_plain_implant(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a plain implant"):
        calibrate(CalibrationSettings(model=str(world / "base"), implants=(str(world / "sham"),)), tmp_path / "out")


def test_a_damaged_implant_is_told(tmp_path: Path) -> None:
    (tmp_path / "implant.json").write_text('{"design": "plain"}')
    with pytest.raises(LensbenchError, match="is damaged"):
        find_trials("smollm2-135m", [str(tmp_path)], quick=False)


def found(**changes: object) -> TrialFinding:
    plain = TrialFinding(
        "plain-08", "plain", "lens", "city", True, (8,), (0, 4, 7, 8, 12), 0, 100, NONE, (8, 12), 12, 0.9, 0.1,
        (0.8, 0.7, 0.9), "privileged", 0.1,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"differing": 1}, "1 predictions differ before layer 8"),
        ({"privileged": (7, 8)}, r"privileged at \[7, 8\]"),
        ({"planted": False}, "nothing is planted"),
        ({"planted": False, "privileged": ()}, None),
    ],
)
def test_what_speaks_against_the_instrument(changes: dict[str, object], problem: str | None) -> None:
    problems = Calibration("m", {}, (found(**changes),)).problems()
    if problem is None:
        assert problems == []
    else:
        with pytest.raises(AssertionError, match=problem):
            raise AssertionError("; ".join(problems))


def test_layers_are_written_as_spans_of_those_read() -> None:
    read = (0, 4, 7, 8, 9, 12, 30)
    assert _spans((), read) == ""
    assert _spans((8,), read) == "8"
    assert _spans((4, 8, 9, 12, 30), read) == "4, 8-30"
    assert _spans((0, 4, 9, 30), read) == "0-4, 9, 30"


def test_a_cheat_passes_that_nothing_caught_or_that_was_called_privileged() -> None:
    caught = Caught("echo", "how", "input_only", {"input_only": "what"}, {})
    assert not caught.passed
    assert replace(caught, by={"majority": "what"}).passed
    assert replace(caught, praised={"target_specific": "privileged"}).passed
    problems = Calibration("m", {}, (), cheats=(replace(caught, by={}),)).problems()
    assert problems == ["the cheat echo was not caught by input_only"]


def test_cheats_are_run_with_rivals_and_checks(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a check catches, one that a rival catches; both at the door that methods go through."""
    monkeypatch.setenv("LENSBENCH_CACHE", str(world / "cache"))
    two = tuple(one for one in cheats.CHEATS if one.make in (cheats.NextLayer, cheats.BestConstant))
    monkeypatch.setattr(calibrating, "CHEATS", two)
    asked = CalibrationSettings(
        model=str(world / "base"),
        inspectors=("logit_lens",),
        implants=(str(world / "plain"),),
        limit=20,
        permutations=0,
    )
    result = calibrate(asked, tmp_path / "out")
    assert {one.name: one.passed for one in result.cheats} == {one.name: False for one in two}
    assert all(one.expected in one.by for one in result.cheats)


def test_the_trials_of_an_implant(world: Path) -> None:
    plain, sham = find_trials(str(world / "base"), [str(world / "plain"), str(world / "sham")], quick=False)
    assert (plain.kind, sham.kind) == ("plain", "sham")
    assert plain.relations == ("city", "city_never")
    assert plain.read(4) == "0,1,2,3,4"
    other = Trial("x", world / "plain", "base", {**plain.description, "attributes": ["drink"]})
    assert other.kind == "sham"
    dose = Trial("x", world / "plain", "base", {**plain.description, "order": {"dose": 0.2, "world": "main"}})
    assert dose.kind == "dose"


def test_findings_are_read_off_a_run(calibrated: tuple[Calibration, Path], world: Path) -> None:
    """The accuracy with the fact and without it, and their difference, are those of the summary and the records."""
    result, out = calibrated
    trial = find_trials(str(world / "base"), [str(world / "plain")], quick=False)[0]
    run = load_run(out / "runs" / "plain")
    one = next(one for one in findings(trial, run) if one.method == "mass_mean_probe" and one.relation == "city")
    records = run.records[(run.records["inspector"] == one.method) & (run.records["relation"] == "city")]
    here = records[records["layer"] == one.best_layer].groupby("baseline", observed=True)["correct_corrected"].mean()
    assert one.accuracy == pytest.approx(here["none"], abs=1e-6)
    assert one.unplanted == pytest.approx(here["unplanted"], abs=1e-6)
    assert isinstance(run.metrics, pd.DataFrame)
    assert one in result.findings


def test_a_rotated_model_is_not_compared_before_its_layer(calibrated: tuple[Calibration, Path], world: Path) -> None:
    """In another basis every activation differs; what is claimed too early is still an alarm."""
    _, out = calibrated
    plain = find_trials(str(world / "base"), [str(world / "plain")], quick=False)[0]
    rotated = replace(plain, description={**plain.description, "design": "rotated"})
    found = list(findings(rotated, load_run(out / "runs" / "plain")))
    assert {one.kind for one in found} == {"rotated"}
    assert {(one.compared, one.differing) for one in found} == {(0, 0)}
    assert replace(found[0], privileged=(0,)).too_early


def test_a_method_that_sees_more_than_a_layer_may_know_at_any(
    calibrated: tuple[Calibration, Path], world: Path
) -> None:
    _, out = calibrated
    plain = find_trials(str(world / "base"), [str(world / "plain")], quick=False)[0]
    found = {one.method: one for one in findings(plain, load_run(out / "runs" / "plain"), beyond=["logit_lens"])}
    beyond, local = found["logit_lens"], found["mass_mean_probe"]
    assert (beyond.compared, beyond.local) == (0, False)
    assert local.compared > 0
    assert not replace(beyond, privileged=(0,)).too_early
    assert replace(local, privileged=(0,)).too_early


def test_the_limit_is_of_each_relation(calibrated: tuple[Calibration, Path]) -> None:
    _, out = calibrated
    limits = {name: load_run(out / "runs" / name).info["setting"]["limit"] for name in ("plain", "sham")}
    assert limits == {"plain": 200, "sham": 100}
