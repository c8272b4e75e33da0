"""What the documents show works as it stands there."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, "LENSBENCH_CACHE": str(cwd / "cache"), "PYTHONPATH": str(path or "")}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's method as a package of a stranger's, built and installed away from lensbench."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (method,) = blocks(README, "python")
    (entry,) = blocks(README, "toml")
    (source / "nearest_mean.py").write_text(method, encoding="utf-8")
    project = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    project += '[project]\nname = "nearest-mean"\nversion = "1"\n'
    project += '[tool.hatch.build.targets.wheel]\nonly-include = ["nearest_mean.py"]\n'
    (source / "pyproject.toml").write_text(project + entry, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--target", target, source, cwd=source)
    return target


def test_the_method_of_the_readme_is_a_short_file() -> None:
    (method,) = blocks(README, "python")
    code = [line for line in method.splitlines() if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) <= 25


def test_the_method_of_the_readme_is_found_by_its_entry_point(
    package: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    listed = run(sys.executable, "-m", "lensbench", "list", "inspectors", cwd=tmp_path, path=package)
    assert re.search(r"nearest_mean.*activation.*labels", listed)
    run(
        *(sys.executable, "-m", "lensbench", "evaluate", "--model", tiny_llama_folder, "--limit", "30"),
        *("--tasks", "attribute_extraction/country_continent", "--inspectors", "nearest_mean", "--out", "run"),
        cwd=tmp_path,
        path=package,
    )
    from lensbench import load_run

    records = load_run(tmp_path / "run").records
    assert {"none", "shuffled", "input_classifier", "control_task", "majority"} <= set(records.baseline)
    assert set(records.inspector) == {"nearest_mean"}


def test_the_method_of_the_readme_keeps_the_contract(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package)
    from nearest_mean import NearestMean

    from lensbench.testing import check_inspector

    check_inspector(NearestMean)


def test_the_baseline_of_the_docs_runs(tiny_llama_folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    (settings,), (function,) = blocks(text, "toml"), blocks(text, "python")
    (tmp_path / "norm_only.toml").write_text(settings, encoding="utf-8")
    (tmp_path / "my_rivals.py").write_text(function, encoding="utf-8")
    run(
        *(sys.executable, "-m", "lensbench", "evaluate", "--model", tiny_llama_folder, "--limit", "10"),
        *("--tasks", "attribute_extraction/country_capital", "--inspectors", "logit_lens"),
        *("--baselines", "./norm_only.toml,input_only", "--out", "run"),
        cwd=tmp_path,
    )
    from lensbench import load_run

    loaded = load_run(tmp_path / "run")
    assert set(loaded.records.baseline) == {"none", "norm_only", "input_only"}
    assert loaded.info["baselines"]["norm_only"]["question"] == "uses_activation"


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tasks/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_toml_of_the_documents_is_toml() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for block in blocks(page.read_text(encoding="utf-8"), "toml"):
            tomllib.loads(block)
