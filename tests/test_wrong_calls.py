"""Every wrong call in Python is one LensbenchError of one line that says what was given and what was expected."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lensbench
from lensbench.errors import LensbenchError
from lensbench.runs.run import finish
from tests import tiny
from tests.made_run import Made, write_run

KEPT = Path(__file__).resolve().parent.parent / "reports" / "country-capital"


def run() -> lensbench.Run:
    return lensbench.load_run(KEPT)


@cache
def made() -> lensbench.Run:
    """A made-up run with all its files."""
    folder = write_run(Path(tempfile.mkdtemp()) / "made", Made())
    finish(folder)
    return lensbench.load_run(folder)


def evaluate(**given: Any) -> Callable[[], Any]:
    return lambda: lensbench.evaluate(**given)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown setting": (evaluate(insepctors=["probe"]), "unknown setting 'insepctors'; did you mean 'inspectors'"),
    "no tasks": (evaluate(tasks=[]), "tasks = []: is empty; name at least one"),
    "tasks of another kind": (evaluate(tasks=3), "expected names, or tasks of lensbench.load_task"),
    "unknown task": (evaluate(tasks="persona"), "did you mean 'personas'"),
    "unknown relation": (evaluate(tasks="personas/town"), "unknown relation of task personas 'town'"),
    "unknown model": (evaluate(model="smollm2-135"), "did you mean 'smollm2-135m'"),
    "a module as the model": (
        evaluate(model=tiny.module("llama")),
        "a model of lensbench.load_model, which also takes",
    ),
    "unknown inspector": (evaluate(inspectors=["prob"]), "did you mean 'probe'"),
    "an object that is none": (evaluate(inspectors=[object()]), "expected names, subclasses of lensbench.Inspector"),
    "parameters of nobody": (evaluate(parameters={"prob": {}}), "did you mean 'probe'"),
    "limit of none": (evaluate(limit=0), "limit = 0: input should be greater than or equal to 1"),
    "layers of words": (evaluate(layers=["first"]), "expected all, stride:2, or layers and ranges"),
    "a site that is none": (evaluate(sites=["middle"]), "unknown sites 'middle'; known: answer, subject"),
    "a baseline that is none": (evaluate(baselines=["shufled"]), "did you mean 'shuffled'"),
    "a configuration that is not there": (evaluate(config="nowhere.toml"), "nowhere.toml cannot be read (No such file"),
    "a model argument that is none": (evaluate(model_args={"speed": "high"}), "speed"),
    "a tracker that is none": (evaluate(log="tensorboard"), "tensorboard"),
    "load_model of a word": (lambda: lensbench.load_model("a/b/c"), "Hub id of the form org/name"),
    "load_model of a number": (lambda: lensbench.load_model(3), "int is no name of a model"),  # type: ignore[arg-type]
    "load_model without tokenizer": (lambda: lensbench.load_model(tiny.module("llama")), "its tokenizer="),
    "load_task of a word": (lambda: lensbench.load_task("attribute_extractoin"), "did you mean 'attribute_extraction'"),
    "load_task of a file that is not there": (lambda: lensbench.load_task("lre:no.json"), "no.json:1: cannot be read"),
    "load_run of nothing": (lambda: lensbench.load_run("nowhere"), "nowhere is not a run folder: it is not there"),
    "load_run of a file": (lambda: lensbench.load_run(__file__), "is not a run folder"),
    "records that are not there": (lambda: run().records, "missing"),
    "a figure that is none": (lambda: made().plot("pie"), "unknown figure 'pie'; known: compare, gap"),
    "a relation that is none": (lambda: made().plot_layers(relation="town"), "'town'"),
    "a width that is none": (lambda: made().plot_layers(width="wide"), "'wide'"),
    "compare with nothing": (lambda: lensbench.compare(KEPT, "nowhere"), "nowhere is not a run folder"),
    "export to a format that is none": (lambda: lensbench.export(KEPT, "x", "xml"), "unknown format 'xml'"),
    "inspect of nothing": (lambda: lensbench.inspect("", "smollm2-135m"), "the prompt '' is empty"),
    "inspect by a probe": (
        lambda: lensbench.inspect("x", "smollm2-135m", "probe"),
        "gives no distribution of the next",
    ),
    "inspect at no layer": (lambda: lensbench.inspect("x", "smollm2-135m", layers="x"), "expected all, stride:2"),
    "a token that is not there": (lambda: lensbench.describe_token("a b", "zebra", "smollm2-135m"), "'zebra'"),
    "new of a kind that is none": (lambda: lensbench.new("widget", "x"), "unknown kind 'widget'"),
    "new of a name that is none": (lambda: lensbench.new("task", "1x"), "NAME '1x': expected lower-case letters"),
    "leaderboard of nothing": (lambda: lensbench.write_leaderboard("nowhere", "x.html"), "nowhere"),
}


def test_there_are_many() -> None:
    assert len(CALLS) > 30


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, told = CALLS[name]
    with pytest.raises(LensbenchError) as caught:
        call()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
