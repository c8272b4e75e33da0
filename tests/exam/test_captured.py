"""Exams about models that do not run here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import make_config
from lensbench.exam.captured import plan_capture, read_capture
from lensbench.exam.grade import grade_exam
from lensbench.exam.key import KEY, read_key
from lensbench.exam.make import ExamSettings, make_exam
from lensbench.exam.paper import read_paper
from lensbench.exam.sit import sit_exam
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.models.loading import load_model

ASKED = {"tasks": "personas/city", "sites": "subject", "limit": 20, "layers": "0,1,2"}
PLACE = ["baseline", "layer", "attempt", "item"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plans") / "capture.parquet"
    assert plan_capture(make_config({name: ASKED[name] for name in ("tasks", "sites", "limit")}), out) > 20
    return out


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, plan: Path, tiny_llama_folder: Path) -> Path:
    """What plain hooks of transformers capture, as docs/exam.md has it."""
    folder = tmp_path_factory.mktemp("captured")
    table = pq.read_table(plan)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    kept: dict[str, list[np.ndarray]] = {f"layer.{layer}": [] for layer in range(3)}
    logits = []
    for row in table.to_pylist():
        encoding = tokenizer(row["text"], return_tensors="pt", return_offsets_mapping=True)
        ends = encoding.pop("offset_mapping")[0]
        at = next(i for i, (begin, end) in enumerate(ends.tolist()) if begin < row["end"] <= end)
        with torch.no_grad():
            # The last of `hidden_states` is past the final norm: a hook before the norm has what is wanted.
            seen: list[torch.Tensor] = []
            hook = model.model.norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            found = model(**encoding, output_hidden_states=True)
            hook.remove()
        states = [*found.hidden_states[:-1], seen[0]]
        for layer, state in enumerate(states):
            kept[f"layer.{layer}"].append(state[0, at].numpy())
        logits.append(found.logits[0, at, :50].numpy())
    tensors = {name: np.stack(values) for name, values in kept.items()}
    head = {
        "norm_weight": model.model.norm.weight.detach().numpy(),
        "unembedding": model.lm_head.weight.detach().numpy()[:50].copy(), "logits": np.stack(logits[:5]),
    }  # fmt: skip
    save_file({**tensors, **head}, folder / "capture.safetensors")
    pq.write_table(table.select(["text", "end"]), folder / "capture.parquet")
    (folder / "capture.toml").write_text('model = "far/away"\nn_layers = 2\ndtype = "float32"\n')
    return folder


def test_what_was_captured_is_asked_as_if_the_model_ran_here(
    captured: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    model = load_model(str(tiny_llama_folder))
    config = make_config({"model": model, **ASKED})
    own = make_exam(ExamSettings(config), tmp_path / "own")
    far = make_exam(ExamSettings(config, capture=read_capture(captured)), tmp_path / "far")
    paper = read_paper(far)
    assert paper.about["model"] == "far/away"
    assert paper.about["layers"] == [0, 1, 2]
    runs = {}
    for name, exam in (("own", own), ("far", far)):
        answers = tmp_path / f"{name}.parquet"
        sit_exam(read_paper(exam), LogitLens, model, model, answers)
        runs[name] = grade_exam(exam, answers, tmp_path / f"run-{name}")
    frames = [run.records.set_index(PLACE).sort_index() for run in runs.values()]
    assert frames[0].index.equals(frames[1].index)
    log_probs = [frame["gold_log_prob"].astype(float).to_numpy() for frame in frames]
    np.testing.assert_allclose(*log_probs, atol=1e-4)
    pd.testing.assert_series_equal(*(frame["predicted"].astype(str) for frame in frames))
    assert set(frames[1]["model"]) == {"far/away"}
    assert frames[1]["known"].isna().all(), "nobody asked the model that does not run here"
    key = read_key(far / KEY, paper.about["key_sha256"])
    assert key.plan.setting["model"] == "far/away"


def test_decoys_have_the_precision_of_the_model(captured: Path, tiny_llama_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(captured / "capture.safetensors")
    layers = {name: values for name, values in tensors.items() if name.startswith("layer.")}
    kept = {name: torch.from_numpy(values).bfloat16().float().numpy() for name, values in layers.items()}
    (tmp_path / "capture.parquet").write_bytes((captured / "capture.parquet").read_bytes())
    (tmp_path / "capture.toml").write_text('model = "far/away"\nn_layers = 2\ndtype = "bfloat16"\n')
    save_file(kept, tmp_path / "capture.safetensors")
    config = make_config({"model": str(tiny_llama_folder), **ASKED})
    paper = read_paper(make_exam(ExamSettings(config, capture=read_capture(tmp_path)), tmp_path / "exam"))
    assert not (paper.asked.activations.view(np.uint32) & 0xFFFF).any()
    assert "fingerprint" not in paper.about


def twice(folder: Path) -> None:
    rows = pq.read_table(folder / "capture.parquet")
    pq.write_table(pa.concat_tables([rows.slice(1, 1), rows.slice(1)]), folder / "capture.parquet")


def changed(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "capture.safetensors")
        change(tensors)
        save_file(tensors, folder / "capture.safetensors")

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed(lambda t: t.pop("layer.0")), "expected tensors layer.0"),
        (changed(lambda t: t.update({"layer.9": t["layer.2"]})), "to, at most, layer.2"),
        (changed(lambda t: t.update({"layer.1": t["layer.1"][:-1].copy()})), "rows in each"),
        (changed(lambda t: t["layer.1"].__setitem__((3, slice(None)), 0.0)), "layer.1, row 3 is zero or no number"),
        (changed(lambda t: t["layer.2"].__setitem__((4, 2), np.nan)), "layer.2, row 4 is zero or no number"),
        (changed(lambda t: t["layer.1"].__setitem__(5, t["layer.1"][6])), "one row for two texts"),
        (changed(lambda t: t.update({"layer.2": t["layer.1"]})), "layer.2 is layer.1"),
        (changed(lambda t: t.update({"layer.2": t["layer.2"][::-1].copy()})), "does not give the logits"),
        (changed(lambda t: t.update({"layer.2": t["layer.2"] ** 2})), "does not give the logits"),
        (changed(lambda t: t.pop("unembedding")), "or none of them"),
        (twice, "1 rows twice"),
        (lambda folder: (folder / "capture.toml").write_text("model = 3\nn_layers = 2"), "model"),
        (lambda folder: (folder / "capture.safetensors").write_bytes(b"no"), "cannot be read"),
        (lambda folder: (folder / "capture.parquet").unlink(), "cannot be read"),
    ],
)
def test_what_cannot_be_a_capture_is_refused(
    damage: Callable[[Path], None], said: str, captured: Path, tmp_path: Path
) -> None:
    for file in captured.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        read_capture(tmp_path)
    assert "\n" not in str(caught.value)


def test_texts_that_were_not_captured_are_missed(captured: Path, tiny_llama_folder: Path, tmp_path: Path) -> None:
    more = make_config({"model": str(tiny_llama_folder), **ASKED, "limit": 60})
    with pytest.raises(LensbenchError, match="was not captured; capture the whole plan"):
        make_exam(ExamSettings(more, capture=read_capture(captured)), tmp_path / "exam")
    assert not (tmp_path / "exam").exists()
