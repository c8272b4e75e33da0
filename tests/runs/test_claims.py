"""`lensbench claims`: a page and a table about the runs of a study."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.command import lensbench, refused
from tests.made_run import Made, write_run

RULES = """
[beats_another]
says = "It reads <b>more</b> | than another's."
source = "us, 2026"
runs = ["one", "two"]
holds_if = ["own - another > 0.2"]
control = ["own > 0.1"]
[beats_another.values]
own = { method = "patchscope", layers = [0.3, 0.7] }
another = { method = "patchscope", baseline = "shuffled", layers = [0.3, 0.7] }

[never]
says = "It is never right."
source = "us, 2026"
runs = ["one"]
holds_if = ["own < 0.1"]
[never.values]
own = { method = "patchscope", layers = [0.3, 0.7], each = true }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "study" / "one", Made())
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


def test_a_page_says_what_each_run_tells(folder: Path) -> None:
    done = lensbench("claims", "study", "--rules", "rules.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "beats_another (one): holds here",
        "beats_another (two): cannot be told (there is no run two)",
        "never (one): does not hold here",
        "1 holds here, 1 cannot be told, 1 does not hold here; page and table: study/claims.md",
    ]
    page, table = folder / "study" / "claims.md", folder / "study" / "claims.csv"
    text = page.read_text()
    assert "2 claims, 3 verdicts: 1 holds here, 1 does not hold here, 1 cannot be told." in text
    assert "(there is no run two)" in text
    assert "at the layer of 2 that refutes it most clearly" in text
    rows = pd.read_csv(table)
    assert rows["comparison"].dropna().tolist() == ["own - another > 0.2", "own > 0.1", "own < 0.1"]
    assert rows["holds"].dropna().tolist() == [True, True, False]
    before = page.read_bytes(), table.read_bytes()
    lensbench("claims", "study", "--rules", "rules.toml", cwd=folder)
    assert (page.read_bytes(), table.read_bytes()) == before, "the same runs tell the same"


def test_what_does_not_apply_is_no_missing_run_and_what_is_missing_is(folder: Path) -> None:
    path = folder / "study" / "one" / "run.json"
    info = json.loads(path.read_text())
    info["cells"]["none.parquet"] = {
        "status": "not applicable", "task": "facts", "site": "subject", "method": "0", "inspector": "lens",
        "baseline": "none",
    }  # fmt: skip
    info["plan"].append("none.parquet")
    path.write_text(json.dumps(info))
    done = lensbench("claims", "study", "--rules", "rules.toml", "--only", "never", cwd=folder)
    assert done.stdout.startswith("never (one): does not hold here")
    assert not (folder / "study" / "claims.md").exists(), "a page of some claims is written where one is asked for"
    path.write_text(json.dumps({**info, "plan": [*info["plan"], "missing.parquet"]}))
    done = lensbench("claims", "study", "--rules", "rules.toml", "--only", "never", cwd=folder)
    assert done.stdout.startswith("never (one): cannot be told")


def test_analyses_alone_are_a_study(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "drift"
    folder.mkdir(parents=True)
    (folder / "analysis.json").write_text('{"model": "tiny", "n_layers": 2}')
    table = pd.DataFrame({"relation": "own", "subject": range(12), "layer": 0, "cosine": 0.3, "kl": 0.1})
    table.to_csv(folder / "cosines.csv", index=False)
    rule = (
        '[it]\nsays = "so"\nsource = "us"\nruns = ["drift"]\nholds_if = ["a > 0.1"]\n[it.values]\n'
        'a = { table = "cosines.csv", of = "cosine" }\n'
    )
    (tmp_path / "rules.toml").write_text(rule)
    done = lensbench("claims", "study", "--rules", "rules.toml", cwd=tmp_path)
    assert done.stdout.startswith("it (drift): holds here"), done.stderr
    (tmp_path / "rules.toml").write_text(rule.replace('table = "cosines.csv"', 'method = "probe"'))
    lensbench("claims", "study", "--rules", "rules.toml", cwd=tmp_path)
    assert "is a folder of analyses, and has no records of probe" in (tmp_path / "study" / "claims.md").read_text()
    (folder / "analysis.json").write_text('{"model": "tiny"}')
    done = lensbench("claims", "study", "--rules", "rules.toml", cwd=tmp_path)
    assert "repeat `lensbench analyze`" in refused(done, 1)


def test_a_run_that_is_not_finished_tells_nothing(folder: Path) -> None:
    path = folder / "study" / "one" / "run.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "failed", "error": "it broke"', 1))
    done = lensbench(
        "claims", "study", "--rules", "rules.toml", "--only", "never", "--out", "study/claims.md", cwd=folder
    )
    assert done.stdout.startswith("never (one): cannot be told")
    assert "(the run one is not finished)" in (folder / "study" / "claims.md").read_text()


def test_a_run_of_an_earlier_version_is_refused_and_nothing_is_written(folder: Path) -> None:
    path = folder / "study" / "one" / "run.json"
    path.write_text(path.read_text().replace('"n_layers": 3', '"n_layers": null'))
    done = lensbench("claims", "study", "--rules", "rules.toml", cwd=folder)
    assert "does not say how many layers its model has; repeat `lensbench evaluate` with it" in refused(done, 1)
    assert not (folder / "study" / "claims.md").exists()
