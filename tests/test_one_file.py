"""A new baseline is one file beside its TOML, and a new command is one file; each is added to a copy, and used there.

`tests/report/test_new_figure.py` does the same with a figure.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lensbench.runs.run import load_run

ROOT = Path(__file__).resolve().parent.parent

BASELINE = '''"""Activations that point the other way."""

from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.models.activations import Residuals


def reversed_activation(method: CrossFit, factor: float) -> list[Outcome]:
    """The method on its own activations, reversed."""
    return [method.with_activations(lambda seen: Residuals(seen.layers, factor * seen.values)).outcome()]
'''
TOML = """rules_out = "The score comes from the axis on which the activation lies, and not from its direction."
question = "uses_activation"
function = "reversed_activation"
reads = ["activation"]
[parameters]
factor = -1.0
"""
COMMAND = '''"""`lensbench hello`."""

import typer

from lensbench.cli.application import app


@app.command()
def hello(name: str = "you") -> None:
    """Greet somebody."""
    typer.echo(f"hello, {name}")
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout needs to run, with the three files more."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("lensbench", "baselines", "tasks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "lensbench" / "baselines" / "reversed.py").write_text(BASELINE)
    (copy / "baselines" / "reversed.toml").write_text(TOML)
    (copy / "lensbench" / "cli" / "commands" / "hello.py").write_text(COMMAND)
    return copy


def run(checkout: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "LENSBENCH_CACHE": str(checkout / "cache")}
    command = [sys.executable, "-m", "lensbench", *map(str, arguments)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_baseline_is_one_file_beside_its_toml(checkout: Path, tiny_llama_folder: Path) -> None:
    run(
        checkout, "evaluate", "--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_continent",
        "--sites", "subject", "--inspectors", "logit_lens", "--limit", 20, "--out", "out",
    )  # fmt: skip
    found = load_run(checkout / "out")
    assert not found.failed
    assert len(found.records.query("baseline == 'reversed'")) == len(found.records.query("baseline == 'none'"))
    assert found.info["due"]["logit_lens"]["reversed"] == {"question": "uses_activation", "essential": False}


def test_a_command_is_one_file(checkout: Path) -> None:
    assert run(checkout, "hello", "--name", "Ada") == "hello, Ada\n"
    assert "Greet somebody." in run(checkout, "--help")
