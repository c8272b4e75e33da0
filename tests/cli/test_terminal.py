"""Manners: help with examples, completion, one JSON object on stdout, quiet, no colour where none is wanted, a log."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

import lensbench as package
from lensbench.evaluation.journal import hold_folder
from lensbench.runs.run import finish
from lensbench.utils import progress
from lensbench.utils.logs import RUN_LOG, kept_log
from tests.command import COMMAND, lensbench
from tests.made_run import Made, write_run

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def commands() -> dict[str, typer.core.TyperCommand]:
    """All commands by name, those of a group such as `exam make` too."""
    from lensbench.cli import app

    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        own = getattr(command, "commands", None)
        found |= {name: command} if own is None else {f"{name} {one}": made for one, made in own.items()}
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_help_of_every_command_ends_with_an_example(name: str) -> None:
    text = commands()[name].help
    last = text.strip().split("\n\n")[-1] if "Examples:\n" not in text else text[text.index("Examples:") :]
    assert re.match("Examples?:", last), f"{name}: the last paragraph of its help is no example"
    assert f"`lensbench {name}" in last


@pytest.mark.parametrize("name", sorted(commands()))
def test_examples_in_help_are_of_options_that_exist(name: str) -> None:
    command = commands()[name]
    for example in re.findall(rf"`lensbench {name} ([^`]*)`", command.help):
        known = {one for option in command.params for one in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", example)) <= known, example


def test_help_shows_its_example(tmp_path: Path) -> None:
    done = lensbench("audit", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert not COLOUR.search(done.stdout)


def test_completion_is_offered(tmp_path: Path) -> None:
    assert "--install-completion" in lensbench("--help", cwd=tmp_path).stdout
    asked = {"_LENSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "lensbench eval", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['lensbench']; from lensbench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["evaluate"]


@pytest.mark.parametrize("kind", ["models", "tasks", "inspectors", "baselines"])
def test_lists_as_json(kind: str, tmp_path: Path) -> None:
    found = json.loads(lensbench("list", kind, "--json", cwd=tmp_path).stdout)
    assert list(found) == [kind]
    assert {"models": "smollm2-135m", "tasks": "personas", "inspectors": "probe", "baselines": "mean"}[kind] in {
        one[kind.removesuffix("s")] for one in found[kind]
    }


def test_cache_and_knowledge_and_doctor_as_json(tiny_llama_folder: Path, tmp_path: Path) -> None:
    kept = json.loads(lensbench("cache", "--clear", "residuals", "--json", cwd=tmp_path).stdout)
    assert kept["kept"].keys() >= {"models", "residuals"}
    assert kept["freed"] == 0
    done = lensbench("doctor", tiny_llama_folder, "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["passed"]
    assert found["checks"][0].keys() == {"name", "figure", "tolerance", "passed"}
    done = lensbench("knowledge", "personas/city", "--model", tiny_llama_folder, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["relations"]["city"]["facts"] == 120


def test_every_command_has_json_and_those_that_take_time_are_quiet_when_asked() -> None:
    options = {name: {one for option in command.params for one in option.opts} for name, command in commands().items()}
    assert [name for name, known in options.items() if "--json" not in known] == []
    assert [name for name, known in options.items() if "--quiet" not in known] == ["list", "cache"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "made", Made())
    finish(folder)
    return folder


@pytest.mark.parametrize(
    "given",
    [
        ("report", "RUN", "--out", "page.html"),
        ("report", "--leaderboard", "RUN", "--out", "board.html"),
        ("plot", "RUN", "--figure", "layers", "--out", "figure.svg"),
        ("export", "RUN", "--out", "tables"),
        ("new", "inspector", "my_lens"),
    ],
    ids=lambda given: given[0],
)
def test_commands_that_write_files_name_them_in_json(given: tuple[str, ...], made: Path, tmp_path: Path) -> None:
    told = [str(made) if one == "RUN" else one for one in given]
    done = lensbench(*told, "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    files = json.loads(done.stdout)["files"]
    assert files
    assert all((tmp_path / file).is_file() for file in files)


def test_fit_and_analyze_say_one_object(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--json", "--quiet")
    done = lensbench("fit", "tuned_lens", *given, "--out", "lens", "--set", "steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["inspector"], found["folder"]) == ("tuned_lens", "lens")
    assert found["tokens"] > 0
    done = lensbench("analyze", "drift", *given, "--out", "drift", "--tokens", 256, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["folder"] == "drift"
    assert {row["layer"] for row in found["tables"]["drift-layers"]} >= {0, 1}


def test_evaluate_says_one_object_and_keeps_a_log(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_capital", "--limit", 12)
    given = (*given, "--inspectors", "logit_lens", "--baselines", "mean", "--sites", "answer", "--out", "run")
    plan = json.loads(lensbench("evaluate", *given, "--dry-run", "--json", "--quiet", cwd=tmp_path).stdout)
    assert plan["missing"] == len(plan["cells"]) == 2
    assert not (tmp_path / "run").exists()
    done = lensbench("evaluate", *given, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["run"] == "run"
    assert found["failed"] == {}
    assert {row["inspector"] for row in found["best"]} == {"logit_lens"}
    assert "2 cells, 0 done before" in done.stderr
    log = (tmp_path / "run" / RUN_LOG).read_text(encoding="utf-8")
    assert "2 cells, 0 done before, in run" in log
    assert log.count("begins: attribute_extraction at answer, logit_lens") == 2
    assert log.count("DEBUG lensbench: done: ") == 2
    again = lensbench("evaluate", *given, "--quiet", cwd=tmp_path)
    assert again.stderr == ""
    assert "logit_lens" in again.stdout
    assert "2 cells, 2 done before" in (tmp_path / "run" / RUN_LOG).read_text(encoding="utf-8")


def test_a_run_that_does_not_begin_leaves_no_log(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "run"), kept_log(tmp_path / "run"):
        logging.getLogger("lensbench").warning("said")
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_refused_leaves_no_trace_in_another_log(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_capital", "--limit", 6)
    given += ("--inspectors", "logit_lens", "--baselines", "none", "--sites", "subject", "--out", "run")
    assert lensbench("evaluate", *given, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for more in (("--seed", "1"), ("--layers", "1"), ("--device", "toaster")):
        assert lensbench("evaluate", *given, *more, cwd=tmp_path).returncode == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_the_log_keeps_what_others_do_not_hear(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_text("{}")
    ours = logging.getLogger("lensbench")
    before = (ours.level, ours.propagate, list(ours.handlers), list(logging.getLogger().handlers))
    with kept_log(tmp_path) as begin:
        logging.getLogger("lensbench.models").debug("a detail")
        assert not (tmp_path / RUN_LOG).exists()
        begin()
        ours.warning("a warning")
        logging.getLogger("elsewhere").warning("of a library")
        logging.getLogger("elsewhere").info("chatter")
    assert (ours.level, ours.propagate, list(ours.handlers), list(logging.getLogger().handlers)) == before
    log = (tmp_path / RUN_LOG).read_text(encoding="utf-8")
    assert [line.split(": ", 1)[1] for line in log.splitlines()] == ["a detail", "a warning", "of a library"]
    assert [record.getMessage() for record in caplog.records] == ["a warning", "of a library"]


def test_warnings_of_libraries_are_kept_out_of_the_way() -> None:
    script = (
        "import logging, warnings\nfrom lensbench.cli.application import say_what_happens\nsay_what_happens()\n"
        "warnings.warn('deprecated')\nlogging.getLogger('lib').warning('advice')\n"
        "logging.getLogger('lib').error('broken')\nlogging.getLogger('lensbench.x').info('told')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["broken", "told"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("no_colour", [False, True])
def test_colour_in_a_terminal_alone_and_not_with_no_color(no_colour: bool, tmp_path: Path) -> None:
    import pty

    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if no_colour else {})
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "--help"], stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path, check=False
    )
    os.close(theirs)
    text = os.read(ours, 100_000).decode(errors="replace")
    os.close(ours)
    assert done.returncode == 0
    coloured = [code for code in COLOUR.findall(text) if re.search(r"\[(\d+;)*(3[1-7]|38|9\d)", code)]
    assert bool(coloured) != no_colour


def test_progress_is_written_in_lines_where_it_cannot_be_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar(4) as advance:
        for _ in range(4):
            advance("a cell")
            now[0] += 100
            advance(None)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["1 of 4, about 5 min left", "2 of 4, about 3 min left", "3 of 4, about 2 min left"]


def test_the_first_line_comes_after_20_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar(9) as advance:
        for _ in range(6):
            now[0] += 11
            advance(None)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == ["2 of 9", "5 of 9"]


def test_progress_draws_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=drawn, force_terminal=True, width=100))
    with progress.bar(3) as advance:
        advance("a cell")
        advance(None, "capitals subject: probe 0.61 at layer 4")
        time.sleep(0.5)
    assert "left" in drawn.getvalue()
    assert "probe 0.61 at layer 4" in drawn.getvalue()
    assert "1/3" in drawn.getvalue()


def test_stable_names_are_there_documented_and_import_no_torch() -> None:
    script = "import sys, lensbench; dir(lensbench); assert not {'torch', 'pandas'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert set(package._HOMES) == set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'evalaute'"):
        _ = package.evalaute  # type: ignore[attr-defined]
