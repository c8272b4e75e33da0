"""A run for other programs. What lm-evaluation-harness does with its files is written out here: it is not installed."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.runs.export import FORMATS, export, harmless
from lensbench.runs.pages import read_page_run, write_page
from lensbench.runs.run import finish, load_run
from tests.command import lensbench, refused
from tests.made_run import Made, write_run

MADE = Made(subjects=15, hostile=True, sites=("subject", "answer"), layers=(0, 1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("export") / "run", MADE)
    finish(path)
    return path


def test_tables(folder: Path, tmp_path: Path) -> None:
    written = export(folder, tmp_path)
    assert {path.name for path in written} >= {"records.csv", "summary.csv", "best.csv"}
    run = load_run(folder)
    records = pd.read_csv(tmp_path / "records.csv", keep_default_na=False)
    assert len(records) == len(run.records)
    assert set(records["subject"]) == set(run.records["subject"].astype(str))
    assert len(pd.read_csv(tmp_path / "best.csv")) == len(run.best)


def read_as_the_harness_does(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """Find results and samples as `lm_eval.utils` does: by the parts of their names before and after the last `_`."""
    names = [str(path) for path in folder.iterdir()]
    results = max((n for n in names if "/results_" in n and ".json" in n), key=lambda n: n[n.rfind("_") + 1 :])
    when = results[results.rfind("_") + 1 :].removesuffix(".json")
    samples = {}
    for name in (Path(n).name for n in names if "/samples_" in n and ".json" in n):
        assert name[name.rfind("_") + 1 :].replace(".jsonl", "") == when
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        samples[name[name.find("_") + 1 : name.rfind("_")]] = [json.loads(line) for line in lines if line]
    return json.loads(Path(results).read_text(encoding="utf-8")), samples


def test_harness_files(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path, "lm-eval")
    run = load_run(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny--logit_lens", "tiny--patchscope"]
    for method in ("logit_lens", "patchscope"):
        results, samples = read_as_the_harness_does(tmp_path / f"tiny--{method}")
        assert set(results["results"]) == set(samples) == {
            f"facts_{relation}_{site}" for relation in MADE.relations for site in MADE.sites
        }  # fmt: skip
        for key in ("configs", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks", "task_hashes"):
            assert set(results[key]) == set(samples), key
        best = run.best[(run.best["inspector"] == method) & (run.best["relation"] != "all")]
        for row in best.to_dict("records"):
            task = f"facts_{row['relation']}_{row['site']}"
            found = results["results"][task]
            assert found["acc_corrected,none"] == pytest.approx(row["accuracy_corrected"], abs=1e-6)
            assert found["acc_corrected,none"] == found[f"acc_corrected,layer_{row['layer']}"]
            assert {name.partition(",")[2] for name in found} >= {f"layer_{layer}" for layer in MADE.layers}
            assert found["rival_input_only,none"] == pytest.approx(row["beats_text_baseline_accuracy"], abs=1e-6)
            mean = sum(sample["acc_corrected"] for sample in samples[task]) / len(samples[task])
            assert mean == pytest.approx(found["acc_corrected,none"], abs=1e-6)
            assert 0 < found["acc_stderr,none"] < 0.5


def test_samples_have_what_the_harness_writes(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path, "lm-eval")
    _, samples = read_as_the_harness_does(tmp_path / "tiny--patchscope")
    rows = samples["facts_capital_subject"]
    assert len(rows) == MADE.subjects
    assert [row["doc_id"] for row in rows] == list(range(len(rows)))
    assert "<script>alert(1)</script>" in {row["doc"]["subject"] for row in rows}
    for row in rows:
        assert isinstance(row["target"], str)
        assert row["resps"] == [[row["filtered_resps"][0]]]
        assert isinstance(row["arguments"]["gen_args_0"]["arg_0"], str)
        assert all(re.fullmatch("[0-9a-f]{64}", row[f"{what}_hash"]) for what in ("doc", "prompt", "target"))
    assert len({frozenset(row) for row in rows}) == 1


def test_logs_have_what_inspect_requires(folder: Path, tmp_path: Path) -> None:
    """The fields that its `EvalLog`, `EvalSpec` and `EvalSample` require, and the pattern of names that it lists."""
    run = load_run(folder)
    best = run.best[run.best["relation"] != "all"]
    written = export(folder, tmp_path, "inspect")
    assert len(written) == len(best)
    found = {}
    for path in written:
        assert re.match(r"^\d{4}-\d{2}-\d{2}T\d{2}[:-]\d{2}[:-]\d{2}.*\.json$", path.name)
        log = json.loads(path.read_text(encoding="utf-8"))
        assert (log["version"], log["status"]) == (2, "success")
        assert {"created", "task", "dataset", "model", "config"} <= log["eval"].keys()
        assert all({"id", "epoch", "input", "target"} <= sample.keys() for sample in log["samples"])
        assert len({sample["id"] for sample in log["samples"]}) == len(log["samples"]) == MADE.subjects
        for score in log["results"]["scores"]:
            mean = sum(sample["scores"][score["name"]]["value"] for sample in log["samples"]) / len(log["samples"])
            assert score["metrics"]["accuracy"]["value"] == pytest.approx(mean, abs=1e-6)
        asked = log["eval"]["task_args"]
        found[asked["relation"], asked["site"], asked["inspector"]] = log
    for row in best.to_dict("records"):
        log = found[row["relation"], row["site"], row["inspector"]]
        metadata = log["eval"]["metadata"]
        assert metadata["best_layer"] == row["layer"]
        assert metadata["rival_input_only,none"] == pytest.approx(row["beats_text_baseline_accuracy"], abs=1e-6)
        corrected = log["results"]["scores"][1]["metrics"]["accuracy"]["value"]
        assert corrected == pytest.approx(row["accuracy_corrected"], abs=1e-6)


def test_inspect_reads_its_logs(folder: Path, tmp_path: Path) -> None:
    logs = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed")
    export(folder, tmp_path, "inspect")
    listed = logs.list_eval_logs(str(tmp_path))
    assert len(listed) == 8
    assert {logs.read_eval_log(one).status for one in listed} == {"success"}


def test_the_command_says_where(folder: Path, tmp_path: Path) -> None:
    done = lensbench("export", folder, "--format", "lm-eval", "--out", "there", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / line).is_file() for line in done.stdout.splitlines())


def test_names_of_models_make_no_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", replace(MADE, sites=("subject",)))
    from tests.runs.test_compare import change

    change(run, lambda frame: frame.assign(model="org/a model+told/here", verbalizer="org/reader"))
    finish(run)
    export(run, tmp_path / "out", "lm-eval")
    assert all(path.is_dir() and not path.name.startswith("org/") for path in (tmp_path / "out").iterdir())
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "format_"),
    [("metrics.csv", "csv"), *(("summary.csv", format_) for format_ in FORMATS)],
)
def test_a_table_that_is_cut_short_exports_nothing(folder: Path, tmp_path: Path, name: str, format_: str) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / name).write_bytes((folder / name).read_bytes()[:-40])
    said = refused(lensbench("export", cut, "--format", format_, "--out", "there", cwd=tmp_path), 1)
    assert f"{name} is damaged (it ends in the middle of a line)" in said
    assert not (tmp_path / "there").exists()


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: csv, inspect, lm-eval"):
        export(folder, tmp_path, "parquet")
    (tmp_path / "taken").write_text("")
    assert "cannot be written to" in refused(lensbench("export", folder, "--out", "taken", cwd=tmp_path), 2)
    assert "not a run folder" in refused(lensbench("export", tmp_path, "--out", "x", cwd=tmp_path), 1)
    unfinished = write_run(tmp_path / "unfinished", MADE)
    info = json.loads((unfinished / "run.json").read_text())
    for cell in info["cells"].values():
        cell.update(status="missing")
    (unfinished / "run.json").write_text(json.dumps(info))
    with pytest.raises(LensbenchError, match="no finished cell"):
        export(unfinished, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("@SUM(1)", "'@SUM(1)"), ("+A1", "'+A1"), ("-A1", "'-A1"),
        ("\tx", "'\tx"), ("-5", "-5"), ("+3.2", "+3.2"), ("1-2", "1-2"), ("C++", "C++"), ("", ""),
    ],
)  # fmt: skip
def test_a_text_that_a_spreadsheet_would_run_is_quoted(text, written) -> None:
    frame = pd.DataFrame({"answer": pd.Categorical([text, "red"]), "n": [-1, 2]})
    found = harmless(frame)
    assert found["answer"].tolist() == [written, "red"]
    assert found["n"].tolist() == [-1, 2]


@pytest.mark.parametrize("name", ["2023", "1e5", "true", "inf", "-5", "007", "nan", "None"])
def test_names_that_look_like_numbers_stay_names(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Made(task=name, relations=(name, "other"), layers=(0, 1)))
    finish(folder)
    run = load_run(folder)
    assert set(run.summary["task"]) == {name}
    assert name in set(run.best["relation"])
    assert set(run.metrics["task"]) <= {name}
    assert run.plot("layers", task=name, relation=name).axes
    assert export(folder, tmp_path / "lm", "lm-eval")
    assert write_page([read_page_run(folder)], tmp_path / "page.html") > 10_000
