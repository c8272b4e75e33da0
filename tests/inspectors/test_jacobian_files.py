"""Jacobian lenses as `.pt` files in their published form: read, written, refused; and `lensbench fit`."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lensbench import evaluate, testing
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.jacobian_lens import JacobianLens
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.training import fit as fitting
from tests import tiny
from tests.command import lensbench
from tests.inspectors.test_checkpoints import Touch, another_head, nothing_runs

FILE = "jacobian_lens.pt"


def fitted(lens: JacobianLens, model: LanguageModel) -> JacobianLens:
    lens.check(Target(model), model)
    return lens.fit(Target(model), model, Training(corpus=Corpus(model)))


def theirs(file: Path, blocks: int = 3, **changes: Any) -> dict[int, torch.Tensor]:
    """Write random J as others do, who have none for the embeddings, and return them."""
    generator = torch.Generator().manual_seed(1)
    jacobians = {i: torch.randn(32, 32, generator=generator).half() for i in range(blocks)}
    content = {"J": jacobians, "n_prompts": 7, "source_layers": list(range(blocks)), "d_model": 32, **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, file)
    return jacobians


class SecondReader:
    """A reader of the published form that knows nothing of lensbench: plain torch on the output of a block."""

    def __init__(self, file: Path) -> None:
        content = torch.load(file, weights_only=True)
        self.jacobians = {int(block): matrix.float() for block, matrix in content["J"].items()}
        assert content["source_layers"] == sorted(self.jacobians)
        assert all(matrix.dtype == torch.float16 for matrix in content["J"].values())
        assert all(matrix.shape == (content["d_model"],) * 2 for matrix in self.jacobians.values())
        self.prompts, self.metadata = content["n_prompts"], content.get("metadata", {})

    def logits(self, module: torch.nn.Module, ids: torch.Tensor, block: int) -> torch.Tensor:
        outputs: list[torch.Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        handle = module.model.layers[block].register_forward_hook(keep)
        with torch.no_grad():
            module(ids)
            handle.remove()
            return module.lm_head(module.model.norm(outputs[0] @ self.jacobians[block].T))


def test_what_we_write_a_second_reader_reads(tmp_path: Path) -> None:
    """Block i of the file is our layer i + 1: the same logits from a plain pass, at every block below the last."""
    model = tiny.model("llama")
    lens = fitted(JacobianLens(prompts=3, rows=32), model)
    lens.save(tmp_path / "lens")
    reader = SecondReader(tmp_path / "lens" / FILE)
    assert sorted(reader.jacobians) == [0, 1, 2]
    assert reader.prompts == 3
    assert reader.metadata["estimator"] == "jacobian_lens"
    assert reader.metadata["target_layer"] == 3
    assert reader.metadata["parameters"]["prompts"] == 3
    ids = torch.arange(20, 44)[None]
    residuals = model.residuals(ids, torch.ones_like(ids), torch.arange(24)[None], range(5))[:, 0]
    for block in range(3):
        expected = reader.logits(model.module, ids, block)[0]
        torch.testing.assert_close(lens.logits(block + 1, residuals[block + 1], 0), expected, rtol=1e-2, atol=1e-2)


def test_what_others_write_is_read(tmp_path: Path) -> None:
    """Each layer is carried by the J of its block; the embeddings have none, and are read as the logit lens does."""
    model = tiny.model("llama")
    jacobians = theirs(tmp_path / FILE, metadata=None)
    lens = fitted(JacobianLens(path=str(tmp_path / FILE), identity=0.5), model)
    hidden = torch.randn(5, 3, 32)
    moved = lens.translate((0, 1, 2, 3, 4), hidden)
    torch.testing.assert_close(moved[0], 1.5 * hidden[0])
    for block, matrix in jacobians.items():
        h = hidden[block + 1]
        torch.testing.assert_close(moved[block + 1], h @ matrix.float().T + 0.5 * h)
    assert torch.equal(moved[4], hidden[4])


@pytest.mark.parametrize("target_layer", [None, 3])
def test_what_was_saved_is_read_as_it_was(target_layer: int | None, tmp_path: Path) -> None:
    model = tiny.model("gemma2")
    learned = fitted(JacobianLens(prompts=2, target_layer=target_layer), model)
    learned.save(tmp_path / "lens")
    read = fitted(JacobianLens(path=str(tmp_path / "lens" / FILE)), model)
    hidden = torch.randn(5, 6, 32)
    every = (0, 1, 2, 3, 4)
    torch.testing.assert_close(read.translate(every, hidden), learned.translate(every, hidden), rtol=1e-2, atol=1e-2)
    assert torch.equal(read.weight_, learned.weight_.half().float())
    assert [file.name for file in read.files()] == [FILE]
    with pytest.raises(UsageError, match="already a file; copy it"):
        read.save(tmp_path / "again")
    with pytest.raises(UsageError, match="already exists"):
        learned.save(tmp_path / "lens")


def test_what_is_read_keeps_the_contract(tmp_path: Path) -> None:
    theirs(tmp_path / FILE)
    assert len(testing.check_inspector(lambda: JacobianLens(path=str(tmp_path / FILE)))) >= 7


def test_a_file_of_another_head_is_refused(tmp_path: Path) -> None:
    model = tiny.model("llama")
    fitted(JacobianLens(prompts=2), model).save(tmp_path / "lens")
    other = another_head(model, 300)
    with pytest.raises(UsageError, match=r"another norm and head .*tiny-llama in float32"):
        JacobianLens(path=str(tmp_path / "lens" / FILE)).check(Target(other), other)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:500]), "expected a Jacobian lens that torch loads"),
    "no J": (lambda file: theirs(file, J=None), "holds no dictionary J of matrices"),
    "a sum": (lambda file: theirs(file, J=None, jacobian_sum={0: torch.eye(32)}), "holds no dictionary J of matrices"),
    "a list": (lambda file: torch.save([1], file), "holds no dictionary J of matrices"),
    "names": (lambda file: theirs(file, J={"a": torch.eye(32)}), "J has the keys a; expected the numbers of blocks"),
    "a gap": (lambda file: theirs(file, J={0: torch.eye(32), 2: torch.eye(32)}), "has J of the blocks 0, 2; expected"),
    "deeper": (lambda file: theirs(file, 9), "blocks 0, 1, 2, 3, 4, 5, ...; expected all from 0 to the one before its"),
    "fewer": (lambda file: theirs(file, 1, metadata={"target_layer": 3}), "has J of the blocks 0; expected all"),
    "empty": (lambda file: theirs(file, 0), "has J of the blocks none; expected all"),
    "wider": (lambda file: theirs(file, J={0: torch.eye(64)}), "J of block 0 is (64, 64), expected (32, 32)"),
    "text": (lambda file: theirs(file, J={0: "eye"}), "J of block 0 is str, expected (32, 32)"),
    "infinite": (lambda file: theirs(file, J={0: torch.full((32, 32), torch.inf)}), "numbers that are not finite"),
    "metadata": (lambda file: theirs(file, metadata="wiki"), "metadata is no dictionary"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_before_the_model_is_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    theirs(tmp_path / FILE)
    breaking, message = BROKEN[case]
    breaking(tmp_path / FILE)
    nothing_runs(monkeypatch)
    with pytest.raises(UsageError) as error:
        JacobianLens(path=str(tmp_path / FILE)).check(Target(model), model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    model = tiny.model("llama")
    (tmp_path / FILE).write_bytes(pickle.dumps({"J": Touch(tmp_path / "touched")}))
    with pytest.raises(UsageError, match="expected a Jacobian lens that torch loads"):
        JacobianLens(path=str(tmp_path / FILE)).check(Target(model), model)
    assert not (tmp_path / "touched").exists()


def test_fit_writes_a_file_and_says_how_far_it_has_converged(tiny_llama_folder: Path, tmp_path: Path) -> None:
    model, out = str(tiny_llama_folder), tmp_path / "lens"
    settings = ("--set", "prompts=4", "--set", "rows=16", "--device", "cpu")
    found = lensbench("fit", "jacobian_lens", "--model", model, "--out", str(out), *settings, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "cosine of two halves of the prompts, by layer: " in found.stdout
    assert sorted(SecondReader(out / FILE).jacobians) == [0]
    with pytest.raises(UsageError, match="already exists"):
        fitting.fit(RunConfig(model=model, inspectors=("jacobian_lens",)), out)


def test_a_run_says_how_far_it_has_converged(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """In the costs of the cell that was fitted, beside seconds and tokens; a method without such a figure has none."""
    run = evaluate(
        str(tiny_llama_folder), tasks=["attribute_extraction/country_continent"], sites=["subject"], limit=10,
        baselines=[], inspectors=["jacobian_lens", "affine_lens"], out=tmp_path / "run", device="cpu", isolate=False,
        parameters={"jacobian_lens": {"prompts": 4}, "affine_lens": {"tokens": 1024}},
    )  # fmt: skip
    cells = json.loads((run.path / "run.json").read_text())["cells"]
    fits = {name.partition("/")[0]: cell["fit"] for name, cell in cells.items() if "fit" in cell}
    found = [fit.get("split_half", []) for fit in fits.values()]
    assert sorted(map(len, found)) == [0, 2]
    assert all(-1 <= one <= 1 for some in found for one in some)
