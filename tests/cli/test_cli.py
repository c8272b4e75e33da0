"""The command line as a whole: what is wrong in files and models is said in one line, and nothing is half-written."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import COMMAND, lensbench, refused
from tests.evaluation.test_evaluate import write_task

FIGURES = True


@pytest.mark.parametrize(
    "arguments", [["list", "baselines"], ["evaluate", "--layers", "3,x"], ["cache", "--json"]], ids=" ".join
)
def test_a_forked_command_is_one_that_is_started(arguments: list[str], tmp_path: Path) -> None:
    """The other tests fork, which spares each of them the import of torch."""
    forked, started = (lensbench(*arguments, cwd=tmp_path, start=start) for start in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


BY_MODEL = {
    ("--layers", "0,3"): "the model has layers 0 (embeddings) to 2; layer 3 is not one",
    ("--device", "cuda:9"): "--device 'cuda:9' is not available on this machine",
    ("--device", "meta"): "--device 'meta' is not available on this machine",
    ("--device", "toaster"): "--device 'toaster' is not available on this machine",
    ("--set", "patchscope.target_layers=[9]"): "target_layers (9,)",
    ("--set", "patchscope.target=1"): "inspector patchscope has no parameter 'target'",
    ("--chat-template",): "the tokenizer has no chat template",
    ("--revision", "main"): "is not on the Hub; leave the revision out",
}


@pytest.mark.parametrize("arguments", BY_MODEL, ids=" ".join)
def test_wrong_settings_for_a_model(arguments: tuple[str, ...], tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_capital", "--limit", 5)
    done = lensbench("evaluate", *given, "--inspectors", "patchscope", *arguments, "--out", "run", cwd=tmp_path)
    assert BY_MODEL[arguments] in refused(done, 1 if arguments == ("--chat-template",) else 2)
    assert not (tmp_path / "run").exists()


def test_knowledge_is_told_by_relation(tiny_llama_folder: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "drinks", choices=["tea", "wine"])
    without = lensbench("knowledge", task, "--model", tiny_llama_folder, cwd=tmp_path)
    assert "has no knowledge prompts" in refused(without, 1)
    done = lensbench("knowledge", "personas/city", "--model", tiny_llama_folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["city"]]
    assert row.split()[1] == "120"
    assert 0 <= float(row.split()[2]) <= 1


def test_output_folder_that_is_a_file(tiny_llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = lensbench("evaluate", "--model", tiny_llama_folder, "--out", "taken", cwd=tmp_path)
    assert "--out taken cannot be written to" in refused(done, 2)


def test_malformed_task_names_file_and_line(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "drinks", choices=["tea", "wine"])
    lines = (folder / "items.jsonl").read_text().splitlines()
    lines[6] = '{"relation": "likes", "subject": "A B"'
    (folder / "items.jsonl").write_text("\n".join(lines))
    done = lensbench("evaluate", "--tasks", folder, cwd=tmp_path)
    assert f"{folder / 'items.jsonl'}:7:" in refused(done, 1)


def test_empty_fold_and_colliding_choices(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "few", choices=["tea", "wine"])
    kept = (folder / "items.jsonl").read_text().splitlines()[:2]
    (folder / "items.jsonl").write_text("\n".join(kept))
    assert "fold" in refused(lensbench("evaluate", "--tasks", folder, cwd=tmp_path), 1)
    collide = write_task(tmp_path / "alike", choices=["tea", "Tea"])
    assert "choice" in lensbench("evaluate", "--tasks", collide, cwd=tmp_path).stderr


def test_subject_at_token_0(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "sink", choices=["tea", "wine"])
    # With this apostrophe before it, the name is in one token with the text's first character.
    for name, old, new in (
        ("items.jsonl", "Name0 Other0", "s"),
        ("task.toml", "We spoke of {subject}", "'{subject} sang"),
    ):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    given = ("--model", tiny_llama_folder, "--tasks", folder, "--inspectors", "logit_lens", "--out", "run")
    message = refused(lensbench("evaluate", *given, cwd=tmp_path), 1)
    assert "likes/s/subject/test0" in message
    assert "is read at token 0, an attention sink; begin the text with other words" in message
    assert not list((tmp_path / "run").rglob("*.parquet"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_interrupted_run_keeps_what_is_done(tiny_llama_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LENSBENCH_CACHE": str(tmp_path / "cache")}
    given = ["evaluate", "--model", str(tiny_llama_folder), "--inspectors", "logit_lens,patchscope", "--out", "run"]
    process = subprocess.Popen(
        [*COMMAND, *given],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").rglob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; finished cells are kept" in errors
    assert "Traceback" not in errors
    assert {path.name for path in (tmp_path / "run").rglob(".*")} <= {".lock"}


def test_plot_and_errors_of_plot(tmp_path: Path) -> None:
    assert "not a run folder" in refused(lensbench("plot", "nowhere", cwd=tmp_path), 1)


def test_a_setting_of_a_wrong_kind_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--inspectors", "patchscope", "--out", "run")
    done = lensbench("evaluate", *given, "--set", "patchscope.target_layers=5", cwd=tmp_path)
    assert "inspector patchscope refuses its settings {'target_layers': 5}" in refused(done, 2)
    done = lensbench("evaluate", *given, "--set", "tuned_lens.tokens=5", cwd=tmp_path)
    assert "settings are given for tuned_lens, which is not in this run" in refused(done, 2)
    assert not (tmp_path / "run").exists()


def test_a_module_that_fails_on_import_is_named(tmp_path: Path) -> None:
    (tmp_path / "mymod.py").write_text("import torch\ntorch.does_not_exist\n\nclass Mine: ...\n")
    message = refused(lensbench("evaluate", "--inspectors", "mymod:Mine", cwd=tmp_path), 2)
    assert "importing mymod failed: AttributeError" in message


def test_a_file_that_is_called_like_a_library_is_not_imported(tmp_path: Path) -> None:
    """Neither by `python -m` nor for a method in the same folder: that folder is looked into last."""
    for name in ("pyarrow", "torch", "datasets", "tomllib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run from the current folder')")
    done = lensbench("list", "tasks", cwd=tmp_path, start=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "mymod.py").write_text("class Mine: ...\n")
    done = lensbench("evaluate", "--inspectors", "mymod:Mine", cwd=tmp_path, start=True)
    message = refused(done, 2)
    assert "current folder" not in message
    assert "mymod" in message


def test_doctor_refuses_a_wrong_final_norm(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Reading the last layer there gives the right logits; every other layer would be read on another scale."""
    paths = ("--module-paths", "blocks=model.layers,norm=lm_head")
    done = lensbench("doctor", tiny_llama_folder, *paths, cwd=tmp_path)
    assert "lm_head does not take the last block's output" in refused(done, 1)
    assert "unknown dtype 'foo'" in refused(lensbench("doctor", tiny_llama_folder, "--dtype", "foo", cwd=tmp_path), 2)


def test_when_everything_fails_the_reasons_are_shown(tiny_llama_folder: Path, tmp_path: Path) -> None:
    code = "from lensbench import Inspector\nclass Mine(Inspector):\n    name = 'mine'\n"
    code += "    def inspect(self, evidence):\n"
    (tmp_path / "mymod.py").write_text(code + "        return None\n")
    given = ("--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_capital", "--limit", 5)
    given += (
        "--inspectors",
        "mymod:Mine",
        "--baselines",
        "none",
        "--layers",
        "1",
        "--sites",
        "subject",
        "--out",
        "run",
    )
    done = lensbench("evaluate", *given, cwd=tmp_path)
    assert done.returncode == 1
    assert "lensbench: failed: " in done.stderr
    assert "1 of 1 cells failed; their tracebacks are in run/run.json" in done.stderr
    assert "strongest rival" not in done.stdout


def test_what_a_method_cannot_answer_is_said(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--tasks", "attribute_extraction/country_capital", "--limit", 5)
    done = lensbench("evaluate", *given, "--inspectors", "probe", "--baselines", "none", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not applicable: probe: country_capital: 168 of 168 answers have fewer than 5" in done.stdout


DECLARED = {
    "learns_from = 'magic'": "unknown learns_from of inspector mine: 'magic'",
    "reads = frozenset({'foo'})": "unknown source in reads of inspector mine: 'foo'",
    "name = 'a/b'": "use letters, digits and _",
}


@pytest.mark.parametrize("line", DECLARED)
def test_declarations_are_checked(line: str, tmp_path: Path) -> None:
    code = f"from lensbench import Inspector\nclass Mine(Inspector):\n    name = 'mine'\n    {line}\n"
    (tmp_path / "mymod.py").write_text(code + "    def inspect(self, evidence):\n        return None\n")
    done = lensbench("evaluate", "--inspectors", "mymod:Mine", "--out", "run", cwd=tmp_path)
    assert DECLARED[line] in refused(done, 2)


def test_a_baseline_called_like_a_shipped_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shuffled.toml").write_text('rules_out = "x"\nquestion = "uses_activation"\nfunction = "shuffled"\n')
    done = lensbench("evaluate", "--baselines", "./shuffled.toml", "--out", "run", cwd=tmp_path)
    assert "has the name of the baseline 'shuffled'; rename the file" in refused(done, 2)
