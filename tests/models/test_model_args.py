"""Model arguments: what may be said, what is refused before anything is loaded, and that what is loaded is what was
asked."""

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import make_config
from lensbench.evaluation.models import load_context
from lensbench.explore.doctor import examine, loaded_as
from lensbench.models import model_args
from lensbench.models.edits import trials
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.models.model_args import check_model_args, parse_model_args, with_dtype
from lensbench.models.precision import check_quantised, held_as, in_float64, keywords, quantised_maps, tolerance_of
from lensbench.models.tokens import Tokens
from tests import tiny


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package that could be asked for is there."""
    monkeypatch.setattr(model_args, "find_spec", lambda name: name)


def test_text_is_read_as_the_table_that_it_stands_for():
    text = 'attn_implementation=eager, load_in_8bit=True,x=1,y=[1,2],quantization_config={quant_method="torchao",b=2}'
    assert parse_model_args(text) == {
        "attn_implementation": "eager",
        "load_in_8bit": True,
        "x": 1,
        "y": [1, 2],
        "quantization_config": {"quant_method": "torchao", "b": 2},
    }
    for wrong in ("eager", "=eager", "attn_implementation=", "load_in_8bit=true,load_in_8bit=false"):
        with pytest.raises(UsageError, match="--model-args"):
            parse_model_args(wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trust_remote_code": True}, "unknown model argument 'trust_remote_code'"),
        ({"attn_implementation": "flex"}, "unknown attention 'flex'"),
        ({"load_in_8bit": "yes"}, "expected true or false"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_4bit, load_in_8bit exclude each other"),
        ({"load_in_8bit": True, "quantization_config": "torchao:Int8WeightOnlyConfig"}, "exclude each other"),
        ({"quantization_config": 8}, "expected a table, or torchao:KIND"),
        ({"quantization_config": "torchao:Int3"}, "unknown quant_type 'Int3'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unknown quant_method 'gptq'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "needs one of load_in_4bit and load_in_8bit"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True, "code": 1}},
            "unknown setting of bitsandbytes 'code'",
        ),
        ({"tp_plan": "rows"}, "unknown tp_plan 'rows'"),
        ({"tp_plan": "auto"}, "needs torch.distributed, which does not run here"),
    ],
)
def test_what_is_not_known_is_refused_in_a_line(given: dict[str, Any], message: str, installed: None):
    with pytest.raises(UsageError, match=message) as refused:
        check_model_args(given)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=message):
        make_config({"model_args": given})


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quantization_config": "torchao:Int8WeightOnlyConfig"}, "torchao"),
        ({"attn_implementation": "flash_attention_2"}, "flash-attn"),
    ],
)
def test_a_package_that_is_missing_is_named(given: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_args, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=f"needs the package {package}, which is not installed: pip install"):
        check_model_args(given)


def test_two_ways_of_saying_one_thing_are_one_setting(installed: None):
    long = {"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}}
    assert check_model_args({"load_in_8bit": True}) == check_model_args(long) == long
    assert check_model_args({"load_in_8bit": False}) == {}


def test_a_dtype_may_be_given_here_but_not_another_than_elsewhere():
    assert with_dtype({"torch_dtype": "torch.bfloat16"}, "auto") == ({}, "bfloat16")
    assert Loading(dtype="float16", model_args={"dtype": "float16"}).dtype == "float16"
    with pytest.raises(UsageError, match="--dtype float32, dtype float16 are different dtypes"):
        Loading(dtype="float32", model_args={"dtype": "float16"})
    with pytest.raises(UsageError, match="different dtypes"):
        make_config({"dtype": "float32", "model_args": "torch_dtype=bfloat16"})
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        with_dtype({"dtype": "int8"}, "auto")


def test_tensor_parallelism_is_passed_on_where_processes_were_started_for_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    args = check_model_args({"tp_plan": "auto"})
    passed = keywords(args, torch.device("cpu"), None)
    assert passed["distributed_config"].tp_plan == "auto"
    assert "device_map" not in passed
    with pytest.raises(UsageError, match="--device-map exclude each other"):
        check_model_args({"tp_plan": "auto"}, "auto")


def test_quantised_weights_take_no_edits(tmp_path: Path, installed: None):
    (tmp_path / "implant.json").write_text("{}")
    edited = f"smollm2-135m+{tmp_path}"
    for settings in ({"model": edited}, {"model": "smollm2-135m", "verbalizer": edited}):
        with pytest.raises(UsageError, match="has edits, which cannot be added to quantised weights"):
            make_config({**settings, "model_args": {"load_in_8bit": True}})
    make_config({"model": edited, "model_args": {"attn_implementation": "eager"}})


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    tiny.module("llama").save_pretrained(tmp_path / "m")  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_attention_is_the_one_that_was_asked_for(tiny_folder: Path):
    plain = load_model(str(tiny_folder))
    eager = load_model(str(tiny_folder), model_args={"attn_implementation": "eager"})
    assert (plain.attention, eager.attention) == ("sdpa", "eager")
    # The same weights: what was learned of one is true of the other. What was computed with them is kept apart.
    assert plain.fingerprint == eager.fingerprint
    assert all(check.passed for check in examine(eager))
    eager.model_args = {"attn_implementation": "sdpa"}
    assert [check.name for check in loaded_as(eager) if not check.passed] == ["loaded with attention"]


def test_arguments_are_the_targets_and_stand_in_the_setting(tiny_folder: Path, tmp_path: Path, isolated_cache: Path):
    other = tmp_path / "other"
    tiny.module("llama", seed=1).save_pretrained(other)  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(other)
    settings = {"model": str(tiny_folder), "verbalizer": str(other), "model_args": "attn_implementation=eager"}
    context = load_context(make_config(settings), [])
    assert (context.model.attention, context.verbalizer.attention) == ("eager", "sdpa")
    assert context.describe()["model_args"] == {"attn_implementation": "eager"}
    assert load_context(make_config({"model": str(tiny_folder)}), []).describe()["model_args"] == {}


class Packed(torch.Tensor):
    """A tensor made of others, as torchao writes them."""

    inner: torch.Tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None


def packed_linear(inner: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(4, 4, bias=False)
    weight = torch.Tensor._make_subclass(Packed, torch.zeros(4, 4))
    weight.inner = inner  # type: ignore[attr-defined]
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.weight.inner = inner  # type: ignore[attr-defined]
    return linear


def test_quantised_weights_are_told_from_plain_ones():
    int8 = torch.ones(4, 4, dtype=torch.int8)
    linear = packed_linear(int8)
    assert held_as(linear.weight) == "int8 (Packed)"
    assert held_as(nn.Linear(4, 4).weight) is None
    assert held_as(nn.Linear(4, 4).bfloat16().weight) is None
    assert quantised_maps(nn.Sequential(linear, nn.Linear(4, 4))) == Counter({"int8 (Packed)": 1, None: 1})
    with pytest.raises(LensbenchError, match="load the model without quantisation"):
        trials(nn.Sequential(linear), "0")
    with pytest.raises(LensbenchError, match="quantised none of its linear maps"):
        check_quantised("m", nn.Sequential(nn.Linear(4, 4)), {"quantization_config": {"quant_method": "torchao"}})


class Int8WeightOnlyConfig:
    """Named as torchao's."""


@pytest.mark.parametrize(
    ("quantised", "dtype", "expected"),
    [
        (None, torch.float32, 5e-4),
        (None, torch.bfloat16, 1e-1),
        (SimpleNamespace(load_in_8bit=True), torch.float32, 1e-1),
        (SimpleNamespace(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16), torch.float32, 1e-1),
        (SimpleNamespace(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), torch.float16, 2e-2),
        (SimpleNamespace(quant_type=Int8WeightOnlyConfig()), torch.float32, 5e-4),
        (SimpleNamespace(quant_method="gptq"), torch.float32, 1e-1),
    ],
)
def test_the_tolerance_is_that_of_the_coarsest_precision(quantised: Any, dtype: torch.dtype, expected: float):
    module: Any = nn.Linear(2, 2)
    module.config = SimpleNamespace(**({} if quantised is None else {"quantization_config": quantised}))
    assert tolerance_of(module, dtype) == expected


def test_a_model_in_half_precision_is_judged_by_its_own_tolerance():
    model = LanguageModel(tiny.module("llama").bfloat16(), Tokens(tiny.tokenizer()), "half")
    checks = {check.name: check for check in examine(model)}
    assert checks["loaded in dtype"].figure == "bfloat16"
    assert checks["batched = one by one"].tolerance == "1e-01"
    assert float(checks["batched = one by one"].figure) > 5e-4  # float32's would refuse it
    assert all(check.passed for check in checks.values())


def test_auto_takes_the_first_accelerator_that_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Loading().torch_device() == torch.device("mps")
    assert Loading().torch_dtype(torch.device("mps")) == torch.float32
    assert Loading(dtype="bfloat16").torch_dtype(torch.device("mps")) == torch.bfloat16
    with pytest.raises(UsageError, match="float64 is not available on mps"):
        Loading(dtype="float64").torch_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Loading().torch_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert Loading().torch_device() == torch.device("cpu")


def test_flash_attention_is_refused_where_it_cannot_run(installed: None):
    with pytest.raises(UsageError, match="runs on CUDA alone, not on cpu"):
        Loading("cpu", model_args={"attn_implementation": "flash_attention_2"}).torch_device()


@pytest.mark.parametrize(
    ("package", "given"),
    [("bitsandbytes", {"load_in_8bit": True}), ("torchao", {"quantization_config": "torchao:Int8WeightOnlyConfig"})],
)
@pytest.mark.filterwarnings("default")  # of packages that are not ours
def test_real_quantisation_is_read_correctly(package: str, given: dict[str, Any], tiny_folder: Path):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = load_model(str(tiny_folder), Loading("cpu"), model_args=given)
    assert model.fingerprint != load_model(str(tiny_folder), Loading("cpu")).fingerprint
    found = {check.name: check for check in examine(model)}
    assert found["loaded with quantisation"].figure.startswith("28 of 29 linear maps int8")
    assert [check for check in found.values() if not check.passed] == []
    assert package in sys.modules


class OnMps(torch.Tensor):
    """As a tensor of MPS is, which has no float64."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("mps")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return torch.ones(1)

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")


def test_float64_is_computed_on_the_cpu_where_a_device_lacks_it():
    assert in_float64(torch.ones(1).as_subclass(OnMps)).dtype == torch.float64
    assert in_float64(torch.ones(1)).dtype == torch.float64
