"""Models, tasks, baselines and methods given as objects, in place of names."""

import inspect
import logging
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbench
from lensbench.baselines.spec import Baseline, find_baselines
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig, check_config, make_config
from lensbench.evaluation.given import Settings
from lensbench.inspectors.base import Lens
from lensbench.inspectors.lenses.logit_lens import LogitLens
from tests import tiny

TASK = "attribute_extraction/country_capital"


class Scaled(Lens):
    """A logit lens whose logits are multiplied."""

    name = "scaled"

    def __init__(self, by: float = 1.0) -> None:
        self.by = by

    def logits(self, layer: int, values: torch.Tensor, attempt: int) -> torch.Tensor:
        return self.target_.unembed(values) * self.by


def settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "tasks": TASK, "inspectors": "logit_lens", "baselines": "shuffled", "sites": "subject", "layers": "0,last",
        "limit": 12, "out": tmp_path / "run", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> lensbench.Run:
    """A run of which everything is given as an object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        given = settings(
            tmp_path_factory.mktemp("runs"), tasks=[lensbench.load_task(TASK)],
            inspectors=[Scaled(by=2.0), LogitLens, "probe"], baselines=[find_baselines()["shuffled"], "mean"],
        )  # fmt: skip
        return lensbench.evaluate(lensbench.load_model(str(tiny_llama_folder)), **given)


def test_objects_are_run_as_what_they_name(objects: lensbench.Run) -> None:
    assert not objects.failed
    assert set(objects.records["inspector"]) == {"scaled", "logit_lens"}
    config = objects.info["config"]
    assert config["inspectors"] == ["scaled", "logit_lens", "probe"]
    assert config["tasks"] == [TASK]
    assert config["baselines"] == ["shuffled", "mean"]
    assert config["parameters"] == {"scaled": {"by": 2.0}}
    assert objects.info["setting"]["layers"] == [0, 2]


def test_the_parameter_of_an_object_is_used(objects: lensbench.Run) -> None:
    own = objects.records[objects.records["baseline"] == "none"]
    first, second = (own[own["inspector"] == name].reset_index(drop=True) for name in ("scaled", "logit_lens"))
    assert (first["predicted"] == second["predicted"]).mean() > 0.9
    assert not torch.allclose(*(torch.tensor(one["gold_log_prob"].to_numpy()) for one in (first, second)))


def test_the_same_objects_resume_and_names_continue_them(objects: lensbench.Run, tiny_llama_folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in (objects.path / "records").iterdir()}
    methods, given = [Scaled(2.0), "logit_lens", "probe"], lensbench.load_model(str(tiny_llama_folder))
    again = lensbench.evaluate(given, **settings(objects.path.parent, inspectors=methods, baselines="shuffled,mean"))
    assert {file.name: file.read_bytes() for file in (again.path / "records").iterdir()} == before
    planned = lensbench.evaluate(given, dry_run=True, **settings(objects.path.parent, inspectors=Scaled(by=3.0)))
    assert len(planned.missing) == len(planned.cells), "another parameter is another method"


def test_a_task_that_was_changed_is_another_task() -> None:
    task = lensbench.load_task(TASK)
    assert task.with_own_version() is task
    fewer = replace(task, facts=task.facts[:30]).with_own_version()
    others = replace(task, facts=task.facts[1:31]).with_own_version()
    assert len({task.version, fewer.version, others.version}) == 3
    assert lensbench.load_tasks([fewer])[0].facts == fewer.facts


def test_a_model_of_transformers_is_taken_with_its_tokenizer(tiny_llama_folder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    model = lensbench.load_model(module, tokenizer=tokenizer)
    assert model.fingerprint == lensbench.load_model(str(tiny_llama_folder)).fingerprint
    assert model.name == str(tiny_llama_folder)
    with pytest.raises(UsageError, match="LlamaForCausalLM is no name of a model; give one, or a model of"):
        lensbench.load_model(module)
    with pytest.raises(UsageError, match="has a tokenizer of its own"):
        lensbench.load_model("smollm2-135m", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"dtype": "bfloat16"}, "dtype = 'bfloat16', but the model .* is given as an object"),
        ({"chat_template": True}, "chat_template = True, but the model"),
        ({"inspectors": [Scaled, Scaled(2.0)]}, None),
        ({"inspectors": [Scaled(torch.ones(1))]}, "by = tensor.* cannot be written to a file"),
        ({"inspectors": [dict]}, "inspector 'dict' is not a subclass of lensbench.Inspector"),
        ({"inspectors": [3]}, "expected names, subclasses of lensbench.Inspector, or objects"),
        ({"inspectors": Lens}, "inspector 'Lens' has no logits"),
        ({"tasks": [3]}, "expected names, or tasks of lensbench.load_task"),
        ({"baselines": [3]}, "expected names, .toml files, or objects of lensbench.baselines.spec.Baseline"),
        ({"baselines": [Baseline(name="mean", rules_out="x", question="diagnostic", function="mean")]}, "has the name"),
        ({"verbalizer": 3}, "expected a name, or a model of lensbench.load_model"),
        ({"executor": "ray"}, "workers load models themselves"),
        ({"insectors": "x"}, "unknown setting 'insectors'; did you mean 'inspectors'"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], told: str | None, tmp_path: Path) -> None:
    if told is None:
        assert make_config(settings(tmp_path, **more)).parameters == {"scaled": {"by": 2.0}}
        return
    with pytest.raises(UsageError, match=told) as caught:
        lensbench.evaluate(tiny.model(), **settings(tmp_path, **more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_typed_settings_are_those_of_a_run() -> None:
    assert {"model", *Settings.__annotations__} == set(RunConfig.model_fields)
    assert set(inspect.signature(lensbench.evaluate).parameters) >= {"model", "dry_run", "progress", "config"}


def test_a_class_of_a_script_is_run_and_filed_under_what_it_does(tmp_path: Path, tiny_llama_folder: Path) -> None:
    """`__main__` is another module in the process that checks the method."""
    script = textwrap.dedent(f"""
        import lensbench
        from lensbench.inspectors.base import Lens
        SCALE = 2.0
        class Mine(Lens):
            name = "mine"
            def logits(self, layer, values, attempt):
                return self.target_.unembed(values) * SCALE
        if __name__ == "__main__":
            run = lensbench.evaluate("{tiny_llama_folder}", inspectors=Mine, tasks="{TASK}", baselines="shuffled",
                                     sites="subject", layers=[1], limit=8, out="run", dry_run=False)
            print(len(run.missing) if hasattr(run, "missing") else run.failed or run.checks["mine"].failed)
    """)
    changed = script.replace("dry_run=False", "dry_run=True").replace("SCALE = 2.0", "SCALE = 3.0")
    for text, told in ((script, "()"), (changed, "1")):
        (tmp_path / "mine.py").write_text(text)
        done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == told
    source = lensbench.load_run(tmp_path / "run").info["methods"]["mine"]["source"]
    assert "class Mine(Lens):" in source
    assert "SCALE = 2.0" in source


class Fails(Scaled):
    """A method with a mistake in it."""

    name = "fails"

    def logits(self, layer: int, values: torch.Tensor, attempt: int) -> torch.Tensor:
        raise ZeroDivisionError("by hand")


def test_a_method_that_fails_is_heard_where_nobody_set_logging_up(
    tmp_path: Path, tiny_llama_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    given = settings(tmp_path, inspectors=Fails, baselines="none", layers="1")
    run = lensbench.evaluate(str(tiny_llama_folder), **given)
    said = capfd.readouterr().err
    assert "fails fails check_contract" in said
    assert "ZeroDivisionError: by hand" in said
    assert "1 cell failed, the first of fails: ZeroDivisionError: by hand" in run._repr_html_()
    with pytest.raises(LensbenchError, match="; 1 cell failed, the first of fails: ZeroDivisionError"):
        run.show()


def test_a_file_that_evaluates_when_it_is_imported_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its methods would be imported again to be checked, and meet the run that is under way."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "begins_a_run.py").write_text("import lensbench\nlensbench.evaluate(limit=2)\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"begins_a_run calls lensbench\.evaluate while it is imported; put the call"):
        lensbench.evaluate(**settings(tmp_path, inspectors=f"{tmp_path}/begins_a_run.py:Mine"))


def test_planted_subjects_are_those_of_the_target(tmp_path: Path) -> None:
    given = settings(
        tmp_path, model="smollm2-135m+plain-08", tasks="personas/city", subjects="planted", baselines="none"
    )
    (task,), _ = check_config(make_config({**given, "verbalizer": "gpt2", "reference": "gpt2"}))
    assert len({fact.subject for fact in task.facts}) == 64
    with pytest.raises(UsageError, match=r"smollm2-135m: expected a facts\.json"):
        check_config(make_config({**given, "model": "smollm2-135m"}))


def test_all_and_one_more_asks_for_no_model_that_all_alone_does_not(tmp_path: Path) -> None:
    """What `all` stands for is left out where the run has no model for it; what is named is not."""
    mine = tmp_path / "mine.toml"
    text = ('rules_out = "The score comes from nothing."', 'question = "diagnostic"', 'function = "mean_activation"')
    mine.write_text("\n".join(text), encoding="utf-8")
    config = make_config({"baselines": f"all,{mine}"})
    assert config.named_baselines() == ("mine",)
    _, baselines = check_config(config)
    assert {"mine", "twin", "mean"} <= set(baselines)
    with pytest.raises(UsageError, match="baseline twin needs a model to read"):
        check_config(make_config({"baselines": "all,twin"}))
