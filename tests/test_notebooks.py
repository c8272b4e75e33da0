"""The notebooks of examples/ run as they stand there, and come to what their texts say."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# What a reader is told to see in each.
SHOWN = {
    "1-first-run.ipynb": ("patchscope", "beats_text_verdict", "image/png"),
    "2-your-own-method.ipynb": ("check_layers_are_local", "check_one_alone", "cosine_lens"),
    "3-your-own-task.ipynb": ("did you mean 'brass'?", "fold imbalance", "majority"),
    "4-is-it-privileged.ipynb": ("beaten by input_only", "beats this text reader", "privileged", "unplanted"),
}


def test_every_notebook_is_tried() -> None:
    assert set(SHOWN) == {path.name for path in EXAMPLES.glob("*.ipynb")}


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    book = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.model
@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_run(name: str, smollm2_folder: Path, tmp_path: Path) -> None:
    # In a folder of their own: they write files, as a reader's do.
    copy = tmp_path / name
    copy.write_bytes((EXAMPLES / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-q", "-p", "no:cacheprovider", str(copy)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path / "ipython")},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    shown = [
        str(output)
        for cell in nbformat.read(copy, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    missing = [words for words in SHOWN[name] if not any(words in one for one in shown)]
    assert not missing, f"{name} does not show {', '.join(missing)}"
