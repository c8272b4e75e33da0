"""The doctor of verbalizers: each kind of wrong contract is caught, and what figures mean is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lensbench.errors import UsageError
from lensbench.explore import verbalizer_probes
from lensbench.explore.verbalizer import Diagnosis, examine_verbalizer, find_verbalizer
from lensbench.explore.verbalizer_probes import DECISIVE, MEANINGS, Probes, behaviour
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS, Notes
from lensbench.models.adapters import adapted, read_adapter
from tests import chats
from tests.command import lensbench, refused
from tests.inspectors.test_nla import base, write_pair
from tests.inspectors.test_oracle import write_adapter
from tests.inspectors.test_selfie_adapter import write_published

MARK = " a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says how it was trained."""
    folder = write_adapter(tmp_path_factory.mktemp("lora") / "adapter")
    recipe, model = replace(CONVENTIONS["activation_oracle"], placeholder=MARK, layers=(2, 3)), chats.model("llama3")
    probes = Probes(model, Oracle(str(folder), placeholder=MARK, layers=recipe.layers))
    norms = {str(layer): probes.norm(layer) for layer in recipe.layers}
    Notes(recipe, model.fingerprint, str(model.dtype), (), {"norms": norms}).write(folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbalizer_probes, "SUBJECTS", 2)


def failed(found: Diagnosis) -> dict[str, str]:
    return {check.name: check.figure for check in found.checks if not check.passed}


def test_an_adapter_that_is_asked_as_recorded(folder: Path) -> None:
    found = examine_verbalizer(chats.model("llama3"), str(folder), {})
    names = [check.name for check in found.checks]
    assert not set(failed(found)) - set(MEANINGS), "only what a random adapter reads may fail"
    assert found.prompt.count("[[ a]]") == 3
    assert found.prompt.startswith("<bos><pad>user<pad>\n\nLayer: 2\n[[ a]][[ a]][[ a]] \nWhat is the capital of this?")
    assert {"adapter off = base", "a zero vector = question only", "length at layer 2 / in training"} <= set(names)
    assert set(MEANINGS) <= set(names)


@pytest.mark.parametrize(
    ("settings", "name", "figure"),
    [
        ({"prompt": "Layer: {layer}\n{subject} \n{question}"}, "as recorded beside the adapter", "prompt"),
        ({"layer": 3}, "as recorded beside the adapter", "layer"),
        ({"write": "overwrite"}, "as recorded beside the adapter", "write"),
        ({"prompt": "<bos>Layer: {layer}\n{subject} \n{question}"}, "BOS at the beginning", "2"),
    ],
    ids=["roles missing", "layer off by one", "another way of writing", "double BOS"],
)
def test_a_wrong_contract_is_caught(settings: dict[str, Any], name: str, figure: str, folder: Path) -> None:
    assert failed(examine_verbalizer(chats.model("llama3"), str(folder), settings))[name] == figure


def test_a_placeholder_that_merges_is_caught(folder: Path) -> None:
    """`ll` is one token of the tiny tokenizer, where three placeholders `l` stand in a row."""
    with pytest.raises(UsageError, match="the verbalizer cannot be asked: the tokenizer merges"):
        examine_verbalizer(chats.model("chatml"), "activation_oracle", {"placeholder": "l"})


def test_an_adapter_that_is_left_on_is_caught(folder: Path) -> None:
    model = chats.model("llama3")
    with pytest.raises(UsageError, match="was trained on another model"):
        examine_verbalizer(adapted(model, read_adapter(folder)), str(folder), {})


def test_a_scale_that_is_off_is_caught(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    notes = json.loads((copy / "lensbench.json").read_text())
    notes["more"]["norms"] = {layer: 5.6 * norm for layer, norm in notes["more"]["norms"].items()}
    (copy / "lensbench.json").write_text(json.dumps(notes))
    found = failed(examine_verbalizer(chats.model("llama3"), str(copy), {}))
    assert found["length at layer 2 / in training"] == "0.18"


class Reader:
    """Probes whose scores with the real vectors are these."""

    real = torch.linspace(-1, -0.5, 40)

    def scores(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.real


@pytest.mark.parametrize(
    ("changed", "fails", "says"),
    [
        ({}, [], []),
        ({"length x 10": 0.0}, [], ["length x 10: no lower: this way of writing takes the length"]),
        ({"another subject's vector": 0.0}, ["another subject's vector"], ["does not read these activations"]),
        ({"written one layer later": 0.3}, ["written one layer later"], ["it reads better so", "is off by one"]),
    ],
)
def test_reading_is_told_from_guessing(
    changed: dict[str, float], fails: list[str], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [(name, Reader.real + changed.get(name, -1.0)) for name in MEANINGS]
    monkeypatch.setattr(verbalizer_probes, "_variants", lambda *_: iter(variants))
    checks, notes = behaviour(Oracle(), Reader(), known=False)  # type: ignore[arg-type]
    assert [check.name for check in checks if not check.passed] == fails
    checks, _ = behaviour(Oracle(), Reader(), known=True)  # type: ignore[arg-type]
    assert [check.name for check in checks if not check.passed] == [name for name in fails if name in DECISIVE]
    assert len(notes) == len(changed)
    assert all(part in notes[0] for part in says)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"foo": 1}, "unknown setting of a verbalizer 'foo'"),
        ({"write": "sideways"}, "unknown oracle.write 'sideways'"),
        ({"layers": "abc"}, "oracle.layers = 'abc': expected numbers of layers, such as 8,16,23"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], told: str, folder: Path) -> None:
    for given in ("activation_oracle", str(folder)):
        with pytest.raises(UsageError) as error:
            examine_verbalizer(chats.model("llama3"), given, settings)
        assert told in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "told"), [("a.txt", "cannot be read"), ("nla_meta.yaml", "is no sidecar of an av")])
def test_what_is_no_verbalizer_is_refused_before_a_model_is_loaded(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("nothing")
    given = tmp_path / name if name == "a.txt" else tmp_path
    with pytest.raises(UsageError, match=told) as error:
        find_verbalizer(str(given), {})
    assert "\n" not in str(error.value)


def test_neither_recipe_nor_adapter_is_one_line(tmp_path: Path) -> None:
    told = refused(lensbench("doctor", "smollm2-135m", "--set", "layer=2", cwd=tmp_path), 2)
    assert "--set is about a verbalizer; give --verbalizer FOLDER" in told
    with pytest.raises(UsageError, match="neither one of activation_oracle, latentqa, plain nor a trained verbalizer"):
        examine_verbalizer(chats.model("llama3"), str(tmp_path / "nothing"), {})


def test_several_layers_are_asked_in_one_prompt(folder: Path) -> None:
    found = examine_verbalizer(chats.model("llama3"), str(folder), {"together": "2,3"})
    assert found.prompt.count("[[ a]]") == 6
    assert "Layer: 1\n[[ a]][[ a]][[ a]] \nLayer: 2\n[[ a]]" in found.prompt
    assert not set(failed(found)) - {*MEANINGS, "as recorded beside the adapter"}
    assert failed(found)["as recorded beside the adapter"] == "together"


def test_a_selfie_adapter_is_examined_by_the_names_of_subjects(tmp_path: Path) -> None:
    file = write_published(tmp_path / "adapter.safetensors", "scalar_affine")
    found = examine_verbalizer(chats.model("chatml"), str(file), {"placeholder": "x"})
    assert found.prompt.count("[[x]]") == 2
    assert 'The meaning of "[[x]]" is "' in found.prompt
    checks = {check.name: check for check in found.checks}
    assert checks["its own vector = question only"].passed
    assert "written one layer later" not in checks
    assert not set(failed(found)) - set(MEANINGS)
    with pytest.raises(UsageError, match="unknown setting of a verbalizer 'layer'"):
        examine_verbalizer(chats.model("chatml"), str(file), {"layer": 2})


def test_an_autoencoder_is_examined_by_what_its_words_tell(tmp_path: Path) -> None:
    found = examine_verbalizer(base(), str(write_pair(tmp_path)[0]), {"steps": 3})
    assert found.prompt.count("[[") == 1
    assert "<concept>[[" in found.prompt
    assert not set(failed(found)) - set(MEANINGS)
    # Explanations do not depend on lengths: the vector is written at the length of the sidecar.
    figures = {check.name: check.figure for check in found.checks}
    real = figures["log p of the right answer among its choices"]
    assert figures["length x 10"] == figures["length x 0.1"] == real


def test_a_sidecar_of_another_tokenizer_is_one_line(tmp_path: Path) -> None:
    copy, _ = write_pair(tmp_path)
    sidecar = copy / "nla_meta.yaml"
    sidecar.write_text(sidecar.read_text().replace("injection_token_id: ", "injection_token_id: 1"))
    with pytest.raises(UsageError, match="the tokens of the slot and beside it are") as told:
        examine_verbalizer(base(), str(copy), {})
    assert "\n" not in str(told.value)
