"""What pip installs: built from a source distribution, in an environment of its own, run from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
