"""What all commands share: words that mean the same, paths, help, completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import lensbench, refused

FLAGS = ("--quiet", "--json", "--offline", "--isolate", "--chat-template", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("evaluate", "--methods", "logit_lense"), "did you mean 'logit_lens'"),
        (("evaluate", "--methods=logit_lense"), "did you mean 'logit_lens'"),
        (("evaluate", "--task", "persona"), "did you mean 'personas'"),
        (("calibrate", "--methods", "logit_lense"), "did you mean 'logit_lens'"),
        (("analyze", "--methods", "logit_lense"), "did you mean 'logit_lens'"),
        (("tune", "patchscope", "--tasks", "persona"), "did you mean 'personas'"),
        (("plot", "x", "--tasks", "y"), "--task applies to a single figure"),
        (("plot", "x", "--method", "y"), "--inspector applies to a single figure"),
    ],
)
def test_another_word_is_understood(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    assert told in refused(lensbench(*arguments, cwd=tmp_path), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "x", "--out", ""), ("plot", "x", "--out="), ("report", "x", "--out", ""), ("evaluate", "--out", ""),
        ("fit", "tuned_lens", "--out", ""), ("new", "task", "x", "--out", ""), ("implant", "--layer", "8", "--out", ""),
        ("analyze", "--out", ""), ("calibrate", "--out", ""), ("finetune", "--out", ""), ("evaluate", "--config", ""),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert "'' is empty; give a name" in refused(lensbench(*arguments, cwd=tmp_path), 2)
    assert not list(tmp_path.iterdir())


def test_help_shows_defaults_and_no_types_of_flags(tmp_path: Path) -> None:
    shown = lensbench("evaluate", "--help", cwd=tmp_path).stdout
    assert "<bool>" not in shown
    for flag in FLAGS:
        assert flag in shown
    words = " ".join(shown.replace("│", " ").split())
    for told in (
        "[default: smollm2-135m]",
        "logit_lens, tuned_lens, probe, patchscope]",
        "--methods is the same",
        "[default: all]",
    ):
        assert told in words
    assert "--inspectors,--methods" not in shown, "two words take the room of the explanation"


def test_the_list_of_commands_is_that_of_the_commands(tmp_path: Path) -> None:
    """It is made without importing them."""
    (shown, whole) = (
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = ['lensbench', '--help']\n{code}"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        ).stdout
        for code in ("from lensbench.cli import main; main()", "from lensbench.cli import app; app()")
    )  # fmt: skip
    assert "evaluate" in shown
    assert shown == whole


COMPLETIONS = {
    "lensbench evaluate --tasks attribute_extraction/country_c": {"attribute_extraction/country_capital"},
    "lensbench evaluate --methods logit_lens,pat": {"logit_lens,patchscope", "logit_lens,patchscope_search"},
    "lensbench evaluate --baselines shuffled,n": {"shuffled,none"},
    "lensbench evaluate --layers s": {"stride:2"},
    "lensbench evaluate --model smollm2-135m+plain-08": {"smollm2-135m+plain-08-twin"},
    "lensbench tune patchscope --task pers": {"personas", "personas/city"},
    "lensbench list pat": {"patchscope"},
    "lensbench exp": {"export"},
}


@pytest.mark.parametrize("typed", COMPLETIONS)
def test_values_are_completed(typed: str, tmp_path: Path) -> None:
    asked = {"_LENSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    # What is completed is the name that the script has.
    script = "import sys; sys.argv[0] = 'lensbench'; from lensbench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert COMPLETIONS[typed] <= set(done.stdout.split()), done.stderr
