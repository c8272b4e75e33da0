"""From configuration to run folder, on a tiny model."""

import json
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from lensbench import evaluate
from lensbench.baselines.activation import derangement
from lensbench.baselines.spec import choose_baselines
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.plan import required_baselines
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import Scores
from lensbench.runs.run import load_run
from lensbench.utils.code import code_digest

FIGURES = True

TASKS = ("attribute_extraction/country_capital", "attribute_extraction/country_continent")
METHODS = ("logit_lens", "tuned_lens", "probe", "patchscope")


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {
            "model": str(tiny_llama_folder),
            "tasks": TASKS,
            "limit": 40,
            "parameters": {"tuned_lens": {"tokens": 1024, "steps": 1}},
        }


@pytest.fixture(scope="module")
def run(settings: dict, tmp_path_factory: pytest.TempPathFactory):
    return evaluate(**settings, out=tmp_path_factory.mktemp("runs") / "all")


def without_lens(settings: dict) -> dict:
    return {key: value for key, value in settings.items() if key != "parameters"}


def shards(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "records").glob("*.parquet"))}


def test_every_method_stands_beside_its_rivals(run) -> None:
    assert not run.failed
    pairs = set(run.records[["inspector", "baseline"]].itertuples(index=False, name=None))
    zero_shot = {"none", "mean", "gaussian", "choices_only", "embedding", "input_only"}
    learned = zero_shot - {"choices_only"} | {"majority", "input_classifier", "random_model", "control_task"}
    expected = {("patchscope", name) for name in zero_shot | {"question_only"}}
    expected |= {(lens, name) for lens in ("logit_lens", "tuned_lens") for name in zero_shot}
    assert pairs == expected | {("probe", name) for name in learned}
    computed = run.summary[run.summary["baseline"] == "shuffled"]
    assert set(computed["inspector"]) == set(run.records["inspector"]), "computed from the methods' own scores"


def test_run_folder_is_whole(run) -> None:
    assert {"run.json", "summary.csv", "metrics.csv", "records", "plots"} <= {path.name for path in run.path.iterdir()}
    assert {path.suffix for path in (run.path / "plots").iterdir()} == {".png", ".svg"}
    hidden = {path.name for path in run.path.rglob("*") if "partial" in path.name or path.name.startswith(".")}
    assert hidden == {".lock"}, "half-written files are left"
    assert run.info["setting"]["layers"] == [0, 1, 2]
    assert date.fromisoformat(run.info["date"]) <= date.today()
    assert all(cell["status"] in ("done", "not applicable") for cell in run.info["cells"].values())


def test_same_items_for_all_methods(run) -> None:
    scored = run.records[(run.records.baseline == "none") & (run.records.relation == "country_continent")]
    sets = scored.groupby(["inspector", "site"], observed=True)["item"].agg(lambda items: frozenset(items))
    for site in ("subject", "answer"):
        assert len(set(sets.xs(site, level="site"))) == 1


def test_probe_is_not_applicable_to_open_relations(run) -> None:
    probe = run.records[run.records.inspector == "probe"]
    assert set(probe[probe.baseline.isin(["none", "majority"])].relation) == {"country_continent"}
    reasons = [cell.get("not_applicable", {}) for cell in run.info["cells"].values() if cell["baseline"] == "majority"]
    assert all("fewer than 2 training subjects" in reason["country_capital"] for reason in reasons)


def test_verdicts_never_say_privileged(run) -> None:
    verdicts = set(run.summary.verdict.dropna())
    assert verdicts <= {"uses the activation", "beats this text reader", "inconclusive"} | {
        verdict for verdict in verdicts if verdict.startswith(("beaten by ", "within .10 of "))
    }


def test_prior_correction_leaves_what_learns_labels_alone(run) -> None:
    probe = run.records[(run.records.inspector == "probe") & (run.records.baseline == "none")]
    assert (probe.correct == probe.correct_corrected).all()


def test_question_only_is_exactly_chance_when_corrected(run) -> None:
    """The same scores for all items: nothing is left after the prior is subtracted."""
    rows = run.records[run.records.baseline == "question_only"]
    assert rows.correct_corrected.to_numpy() == pytest.approx(rows.chance.to_numpy())


def test_shuffled_takes_each_activation_once_and_never_its_own() -> None:
    subjects = ["a", "b", "a", "c", "d", "b"]
    order = derangement(subjects, seed=3)
    assert sorted(order) == list(range(6))
    assert all(subjects[i] != subjects[j] for i, j in enumerate(order))
    assert derangement(["a", "a", "b"], seed=0) is None


def test_again_with_the_same_folder_does_only_what_is_missing(run, settings, monkeypatch) -> None:
    before = shards(run.path)
    gone = next(name for name in before if "patchscope-mean" in name)
    (run.path / "records" / gone).unlink()
    worked = []
    original = Inspector.fit
    monkeypatch.setattr(Inspector, "fit", lambda self, *rest: worked.append(self.name) or original(self, *rest))
    again = evaluate(**settings, out=run.path)
    assert shards(again.path) == before, "the missing cell comes back with the same bytes, and no other changes"
    assert set(worked) <= {"patchscope"}


def test_same_plan_same_bytes(settings, tmp_path: Path) -> None:
    small = {**without_lens(settings), "limit": 10, "inspectors": ("patchscope",), "baselines": ("gaussian", "mean")}
    first, second = (evaluate(**small, out=tmp_path / name) for name in ("a", "b"))
    assert shards(first.path) == shards(second.path)
    assert (first.path / "summary.csv").read_bytes() == (second.path / "summary.csv").read_bytes()


def test_a_cell_that_fails_does_not_end_the_others(settings, tmp_path: Path, monkeypatch) -> None:
    small = {**settings, "limit": 10, "baselines": (), "sites": ("subject",)}
    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "inspect", lambda *_: 1 / 0)
        broken = evaluate(**small, out=tmp_path)
    assert list(broken.failed.values()) == ["ZeroDivisionError: division by zero"]
    assert set(broken.records.inspector) == {"tuned_lens", "probe", "patchscope"}
    traceback = next(cell["traceback"] for cell in broken.info["cells"].values() if cell["status"] == "failed")
    assert "1 / 0" in traceback
    mended = evaluate(**small, out=tmp_path)
    assert not mended.failed
    assert set(mended.records.inspector) == set(METHODS)


def test_run_is_read_back(run) -> None:
    loaded = load_run(run.path)
    pd.testing.assert_frame_equal(loaded.summary, run.summary)
    assert set(loaded.best.inspector) == set(METHODS)


def test_another_plan_does_not_mix_into_a_folder(run, settings) -> None:
    with pytest.raises(UsageError, match="holds a run with limit 40, now 41; choose another folder"):
        evaluate(**{**settings, "limit": 41}, out=run.path)


def test_items_whose_choices_begin_alike_are_dropped_for_all_and_counted(tiny_llama_folder, tmp_path, settings) -> None:
    folder = write_task(tmp_path / "alike", choices=["tea", "tea cake"])
    with pytest.raises(LensbenchError, match=r"no item left for .*begin with the same token"):
        evaluate(**{**settings, "tasks": (str(folder),)}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_whose_first_token_says_nothing_are_left_out_for_all_and_counted(settings, tmp_path, caplog) -> None:
    """Digits have tokens of their own in this tokenizer, and the blank before them is one, too."""
    folder = write_task(tmp_path / "mixed", choices=["tea", "wine", "\u4e03"])
    asked = {**without_lens(settings), "tasks": (str(folder),), "inspectors": ("logit_lens", "probe"), "baselines": ()}
    run = evaluate(**asked, out=tmp_path / "r")
    assert set(run.records.gold) == {"tea", "wine"}
    assert run.records.chance.unique().tolist() == [0.5]
    (why,) = {text for reasons in run.info["dropped"].values() for text in reasons.values()}
    assert "is a bare blank" in why
    assert "left out: 1 (the first token of the answer" in caplog.text
    other = write_task(tmp_path / "none", choices=["\u4e03", "\u516b"])
    with pytest.raises(LensbenchError, match="no two answers can be told apart by their first token"):
        evaluate(**{**asked, "tasks": (str(other),)}, out=tmp_path / "n")


def test_sources_longer_than_the_model_reads_are_left_out_and_counted(settings, tmp_path, caplog) -> None:
    folder = write_task(tmp_path / "long", choices=["tea", "wine"], subject_source="word " * 30 + "of {subject}")
    short = write_task(tmp_path / "short", choices=["tea", "wine"])
    model = tmp_path / "model"
    shutil.copytree(settings["model"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    asked = {**without_lens(settings), "model": str(model), "inspectors": ("logit_lens",), "baselines": ()}
    with pytest.raises(LensbenchError, match=r"no item left .* longer than the 30 tokens that"):
        evaluate(**{**asked, "tasks": (str(folder),)}, out=tmp_path / "r")
    lines = (folder / "task.toml").read_text().splitlines()
    both = [line.replace("]", ', "We spoke of {subject}"]') if line.startswith("test =") else line for line in lines]
    (folder / "task.toml").write_text("\n".join(both))
    run = evaluate(**{**asked, "tasks": (str(folder),), "limit": None}, out=tmp_path / "r")
    assert set(run.records.template) == {"test1"}
    assert "left out: 60 (the source is longer than the 30 tokens" in caplog.text
    assert len(evaluate(**{**asked, "tasks": (str(short),)}, out=tmp_path / "s").records)


def write_task(folder: Path, choices: list[str], subject_source: str = "We spoke of {subject}") -> Path:
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(
        f'name = "{folder.name}"\nsummary = "made up"\n[relations.likes]\nkind = "class"\nsummary = "who → what"\n'
        f'inspection = ["They say that {{subject}} likes"]\nquestions = ["What does {{subject}} like? Answer:"]\n'
        f"choice_sets = [{json.dumps(choices)}]\n[relations.likes.sources.subject]\n"
        f'train = ["Once I saw {{subject}}"]\ntest = ["{subject_source}"]\n'
    )
    rows = [
        {"relation": "likes", "subject": f"Name{i} Other{i}", "answer": choices[i % len(choices)]} for i in range(60)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_custom_task_folder(settings, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "drinks", choices=["tea", "wine"])
    asked = {**without_lens(settings), "tasks": (str(folder),), "limit": None, "inspectors": ("probe",)}
    run = evaluate(**asked, out=tmp_path / "r")
    assert set(run.records.task) == {"drinks"}
    assert set(run.records.site) == {"subject"}


class Forgetful(Inspector):
    """Reads nothing and scores all alike."""

    name = "forgetful"
    reads = frozenset()

    def inspect(self, evidence: Evidence) -> Scores:
        import torch

        return Scores(("default",), torch.zeros(1, 1, evidence.n_items, len(evidence.answers)))


def test_a_constant_scorer_gets_exactly_chance_in_the_records(settings, tmp_path: Path) -> None:
    small = {
        **without_lens(settings),
        "inspectors": ("tests.evaluation.test_evaluate:Forgetful",),
        "baselines": ("input_only",),
    }
    run = evaluate(**small, out=tmp_path)
    own = run.records[run.records.baseline == "none"]
    assert own.layer.isna().all()
    assert own.correct.to_numpy() == pytest.approx(own.chance.to_numpy())


def test_a_changed_method_leaves_no_rivals_of_its_older_self(settings, tmp_path: Path) -> None:
    small = {
        **without_lens(settings),
        "limit": 10,
        "inspectors": ("patchscope",),
        "sites": ("subject",),
        "out": tmp_path,
    }
    evaluate(**small, baselines=("mean", "input_only"))
    changed = evaluate(**small, baselines=(), parameters={"patchscope": {"target_layers": [2, 0]}})
    assert set(changed.records.baseline) == {"none"}
    assert len(shards(tmp_path)) == 1
    assert set(changed.records.attempt) == {"target_layer=2", "target_layer=0"}


def test_a_changed_baseline_is_run_again(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.toml").write_text('rules_out = "x"\nquestion = "diagnostic"\nfunction = "my_own_rival:f"\n')
    code = "from lensbench.baselines.activation import shuffled\ndef f(method):\n    return shuffled(method)\n"
    (tmp_path / "my_own_rival.py").write_text(code)
    small = {**without_lens(settings), "limit": 10, "inspectors": ("logit_lens",), "sites": ("subject",)}
    small |= {"baselines": (str(tmp_path / "mine.toml"),), "out": tmp_path / "run"}
    before = set(shards(evaluate(**small).path))
    assert set(shards(evaluate(**small).path)) == before
    (tmp_path / "my_own_rival.py").write_text(code + "# a comment changes nothing\n")
    assert set(shards(evaluate(**small).path)) == before
    (tmp_path / "my_own_rival.py").write_text(code + "CHANGED = True\n")
    after = set(shards(evaluate(**small).path))
    assert len(after) == 2
    assert len(after & before) == 1, "the method itself is not run again"


def test_other_relations_do_not_mix_into_a_folder(run, settings) -> None:
    with pytest.raises(UsageError, match="relations country_capital, country_continent, now country_capital; choose"):
        evaluate(**{**settings, "tasks": TASKS[:1]}, out=run.path)


def test_failures_of_an_earlier_plan_are_not_those_of_this_one(settings, tmp_path: Path, monkeypatch) -> None:
    small = {**without_lens(settings), "limit": 10, "baselines": (), "sites": ("subject",), "out": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "inspect", lambda *_: 1 / 0)
        assert evaluate(**small, inspectors=("logit_lens", "patchscope")).failed
    assert not evaluate(**small, inspectors=("patchscope",)).failed


def test_a_method_that_fails_beside_rivals_that_do_not_is_reported(settings, tmp_path: Path, monkeypatch) -> None:
    small = {**without_lens(settings), "limit": 10, "sites": ("subject",), "baselines": ("choices_only",)}
    monkeypatch.setattr(LogitLens, "inspect", lambda *_: 1 / 0)
    assert len(evaluate(**small, inspectors=("logit_lens",), out=tmp_path).failed) == 1


def test_a_baseline_that_is_nobodys_rival_is_named(settings, tmp_path: Path, caplog) -> None:
    small = {**without_lens(settings), "limit": 10, "sites": ("subject",), "inspectors": ("logit_lens",)}
    evaluate(**small, baselines=("majority",), out=tmp_path)
    assert "baseline majority does not apply to logit_lens" in caplog.text


WRONG_BASELINES = {
    'learns_from = "labels"': "learns_from = 'labels'; expected list",
    'learns_from = ["label"]': "unknown learns_from 'label'; did you mean 'labels'?",
    'reads = ["activations"]': "did you mean 'activation'?",
    'rule_out = "x"': "did you mean 'rules_out'?",
}


@pytest.mark.parametrize("line", WRONG_BASELINES)
def test_a_baseline_file_is_checked(line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'rules_out = "x"\nquestion = "diagnostic"\nfunction = "shuffled"\n{line}\n')
    with pytest.raises(LensbenchError) as refused:
        choose_baselines([str(path)])
    assert str(path) in str(refused.value)
    assert WRONG_BASELINES[line] in str(refused.value)


def test_a_methods_helpers_are_part_of_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "strange_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("def help(): return 1\n")
    (package / "method.py").write_text("from strange_package.helper import help\nclass Method: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from strange_package.method import Method

    before = code_digest(Method)
    (package / "helper.py").write_text("def help(): return 2\n")
    assert code_digest(Method) != before
    (package / "helper.py").write_text("def help(): return 1\n")
    assert code_digest(Method) == before


def test_optional_baselines_are_run_where_they_are_named_and_no_verdict_waits_for_them() -> None:
    methods = {"logit_lens": LogitLens()}
    usual, named = choose_baselines(None), choose_baselines(["shuffled", "inversion"])
    assert "inversion" not in usual
    assert "inversion" not in required_baselines(methods, usual)["logit_lens"]
    assert "inversion" in required_baselines(methods, named)["logit_lens"]
    assert set(required_baselines(methods, named)["logit_lens"]) - {"inversion"} == set(
        required_baselines(methods, usual)["logit_lens"]
    )
