"""What pip installs: built from a source distribution, in an environment of its own, run from an empty folder."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both must be complete."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert len(list(folder.glob("lensbench-*.tar.gz"))) == 1
    (built,) = folder.glob("lensbench-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `lensbench` command of an environment that holds the wheel and sees the present dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / SCRIPTS / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, wheel, cwd=folder)
    # Only after the installation, or pip would take the present lensbench for the one to install.
    # .pth files in a folder named by a .pth file are not read: the checkout stays out of sight.
    (library,) = folder.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    present = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (library / "present.pth").write_text("\n".join(present) + "\n", encoding="utf-8")
    return folder / SCRIPTS / "lensbench"


def test_wheel_holds_the_data_and_nothing_else_at_its_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "lensbench",
        f"lensbench-{wheel.name.split(chr(45))[1]}.dist-info",
    }
    for folder, kind in (("tasks", "task.toml"), ("tasks", "items.jsonl"), ("baselines", ".toml")):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(f"*{kind}")}
        there = {name.removeprefix("lensbench/_data/") for name in names if name.endswith(kind)}
        assert here, f"{folder}/ holds no {kind}"
        assert here <= there
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lensbench").rglob("*") if path.is_file()}
    assert {name for name in ours if "__pycache__" not in name} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_source_distribution_holds_what_a_checkout_holds(wheel: Path) -> None:
    (built,) = wheel.parent.glob("lensbench-*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    forms = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml")}
    assert len(forms) == 4
    assert forms | {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml"} <= names


def test_one_version_is_told_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    told = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told is not None
    assert (citation["version"], citation["date-released"]) == told.groups()
    assert citation["version"] == project["version"]
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in project["authors"]]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_forms_for_issues_have_what_a_code_host_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= content.keys()
    assert len({field["id"] for field in content["body"]}) == len(content["body"])
    for field in content["body"]:
        assert field["type"] in {"textarea", "input", "checkboxes"}
        assert field["attributes"]["label"]


def test_installed_command_finds_tasks_and_baselines(installed: Path, tmp_path: Path) -> None:
    tasks = run(installed, "list", "tasks", cwd=tmp_path).stdout
    assert all(path.parent.name in tasks for path in (ROOT / "tasks").glob("*/task.toml"))
    baselines = run(installed, "list", "baselines", cwd=tmp_path).stdout
    assert all(path.stem in baselines for path in (ROOT / "baselines").glob("*.toml"))


def test_installed_command_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import lensbench; print(lensbench.__file__)"
    where = run(installed.parent / "python", "-c", code, cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent.parent)


def test_installed_command_evaluates(installed: Path, tiny_llama_folder: Path, tmp_path: Path) -> None:
    run(
        *(installed, "evaluate", "--model", tiny_llama_folder),
        *("--tasks", "attribute_extraction/country_capital", "--inspectors", "logit_lens", "--baselines", "none"),
        *("--limit", "5", "--out", "out"),
        cwd=tmp_path,
        LENSBENCH_CACHE=str(tmp_path / "cache"),
    )
    assert (tmp_path / "out" / "run.json").is_file()
    assert (tmp_path / "out" / "summary.csv").is_file()
    run(installed, "report", "out", cwd=tmp_path)
    run(installed, "plot", "out", "--figure", "layers", cwd=tmp_path)
    run(installed, "new", "task", "my_task", cwd=tmp_path)
    assert (tmp_path / "out" / "report.html").stat().st_size > 500_000
