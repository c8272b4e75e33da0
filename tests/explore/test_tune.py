"""The search over configurations, and that its rivals search as well."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from lensbench import testing
from lensbench.baselines.spec import find_function
from lensbench.errors import LensbenchError, UsageError
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.base import OwnPrompt
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.patchscopes.patchscope_search import Configuration, PatchscopeSearch
from lensbench.inspectors.target import Target
from lensbench.runs.run import load_run
from tests import tiny

FORMS = ("They say that {subject} likes", "Question: what does {subject} like? Answer:")


def search(**settings: object) -> PatchscopeSearch:
    return PatchscopeSearch(**{"budget": 6, "amplifiers": (1.0, 3.0), **settings})


def test_every_attempt_is_the_patchscope_of_its_configuration() -> None:
    bench = testing.small_bench()
    scores = CrossFit(search, bench).scores()
    assert len(set(scores.attempts)) == 6
    for i, name in enumerate(scores.attempts):
        found = search().named(name, bench.forms)
        if found.amplifier != 1:
            continue
        own = found.prompt
        plain = CrossFit(
            lambda own=own, found=found: Patchscope((found.target_layer,), own.text, own.placeholder), bench
        ).scores()
        torch.testing.assert_close(scores.log_scores[:, i], plain.log_scores[:, 0], rtol=1e-4, atol=1e-4)


def test_the_amplifier_multiplies_what_is_patched() -> None:
    bench = testing.small_bench()
    settings = {"budget": 2, "placeholders": ("x",), "target_layers": "1", "amplifiers": (1.0, 3.0)}
    one_form = bench.__class__(
        bench.context,
        bench.relation.__class__(**{**vars(bench.relation), "questions": ()}),
        bench.items,
        bench.train_items,
    )
    scores = CrossFit(lambda: PatchscopeSearch(**settings), one_form).scores()
    assert scores.attempts[1].endswith("amplifier=3")

    def three(residuals: object) -> object:
        return type(residuals)(residuals.layers, 3 * residuals.values)

    tripled = CrossFit(Patchscope, one_form).with_activations(three).scores()
    torch.testing.assert_close(scores.log_scores[:, 1], tripled.log_scores[:, 0], rtol=1e-4, atol=1e-4)


def test_the_plain_patchscope_comes_first_and_names_tell_the_rest() -> None:
    drawn = search(budget=40).configurations(FORMS, 4)
    assert drawn[0] == Configuration(OwnPrompt(FORMS[0], "x"), 0, 1, 1.0)
    assert len(set(drawn)) == 40
    assert [search().named(one.name, FORMS) for one in drawn] == list(drawn)
    assert search(seed=1).configurations(FORMS, 4) != search(seed=2).configurations(FORMS, 4)
    assert len(search(budget=10_000).configurations(FORMS, 4)) == 2 * 3 * 5 * 2
    with pytest.raises(LensbenchError, match="is not a configuration of this search"):
        search().named("form=9 placeholder=x target_layer=1 amplifier=1", FORMS)


def test_rivals_may_choose_among_all_prompts() -> None:
    bench = testing.small_bench()
    method = CrossFit(search, bench)
    (unpatched,) = find_function("question_only")(method)
    assert len(unpatched.scores.attempts) == len(bench.forms) * 3
    (in_text,) = find_function("input_only")(method)
    assert set(bench.forms) <= set(in_text.scores.attempts)
    (other,) = find_function("shuffled")(method)
    assert other.scores.attempts == method.scores().attempts


def test_conformance() -> None:
    assert "check_layers_are_local" in testing.check_inspector(search)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"budget": 0}, "expected 1 or more"),
        ({"placeholders": ()}, "no empty list"),
        ({"prompts": ("no slot",)}, "needs one {subject} slot"),
        ({"target_layers": "9"}, "layers 0 .embeddings. to 4; layer 9"),
        ({"placeholders": ("several words",)}, "several tokens"),
    ],
)
def test_wrong_spaces_are_refused(wrong: dict, expected: str) -> None:
    model = tiny.model()
    with pytest.raises((UsageError, LensbenchError), match=expected):
        search(**wrong).check(Target(model), model)


def tune(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lensbench", "tune", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_reports_on_held_out_folds(tiny_llama_folder: Path, tmp_path: Path) -> None:
    done = tune(
        *("patchscope", "--task", "attribute_extraction/country_continent", "--model", tiny_llama_folder),
        *("--budget", 4, "--limit", 30, "--layers", "0,2", "--sites", "subject", "--out", "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "patchscope_search" in done.stdout
    run = load_run(tmp_path / "run")
    rules = run.summary[run.summary.inspector == "patchscope_search"].groupby("baseline")["rule"].unique()
    assert "selected" in rules["none"]
    assert {"selected"} <= set(rules["shuffled"])
    chosen = pd.read_csv(tmp_path / "run" / "tuned.csv")
    assert len(chosen) == 1
    own = run.records[(run.records.baseline == "none") & (run.records.layer == chosen.layer[0])]
    assert own.groupby("attempt", observed=True).correct_corrected.mean().max() == pytest.approx(chosen.accuracy[0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("probe", "--task", "personas"), "unknown method to tune 'probe'"),
        (("patchscope", "--task", "no_such"), "unknown task"),
        (("patchscope", "--task", "personas", "--budget", "0"), "expected 1 configuration or more"),
        (("patchscope", "--task", "personas", "--set", "x"), "expected NAME=VALUE"),
        (("patchscope", "--task", "personas", "--set", "colour=1"), "no parameter 'colour'"),
    ],
)
def test_wrong_commands_are_one_line(arguments: tuple, expected: str, tmp_path: Path) -> None:
    done = tune(*arguments, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
