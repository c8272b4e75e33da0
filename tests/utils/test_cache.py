"""The cache: an entry is what was written under its name, or it is made again; what was killed is swept."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.models.activations import Reading, ResidualCache, capture
from lensbench.models.corpus import Corpus
from lensbench.utils import cache
from lensbench.utils.cache import atomic_folder, contents, is_whole, read_sealed, seal, sweep, write_sealed
from tests import tiny

READINGS = [Reading((5, 6, 7 + i)) for i in range(6)]
OTHERS = [Reading((5, 6, 107 + i)) for i in range(6)]


def flip(entry: Path, _other: Path) -> None:
    file = next(entry.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x10
    file.write_bytes(bytes(content))


def cut(entry: Path, _other: Path) -> None:
    file = next(entry.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:50])


def swap(entry: Path, other: Path) -> None:
    shutil.rmtree(entry)
    shutil.copytree(other, entry)


def empty(entry: Path, _other: Path) -> None:
    for file in entry.iterdir():
        file.unlink()


def no_seal(entry: Path, _other: Path) -> None:
    (entry / cache.SEAL).unlink()


@pytest.mark.parametrize("damage", [flip, cut, swap, empty, no_seal])
def test_a_damaged_entry_of_residuals_is_made_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model, kept = tiny.model("llama"), ResidualCache(tmp_path)
    right = kept.read(model, READINGS, (0, 2)).values.clone()
    (entry,) = tmp_path.iterdir()
    kept.read(model, OTHERS, (0, 2))
    (other,) = set(tmp_path.iterdir()) - {entry}
    damage(entry, other)
    with caplog.at_level(logging.WARNING, "lensbench"):
        again = kept.read(model, READINGS, (0, 2)).values
    assert torch.equal(again, right)
    assert torch.equal(right, capture(model, READINGS, (0, 2)).values)
    assert "is discarded and made again" in caplog.text
    assert is_whole(entry)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"checksum": 3}', "[" * 50_000])
def test_a_damaged_sealed_file_is_not_used(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "a.json"
    write_sealed(file, {"x": [1, "é"]})
    assert read_sealed(file) == {"x": [1, "é"]}
    shutil.copy(file, tmp_path / "b.json")
    file.write_text(text)
    with caplog.at_level(logging.WARNING, "lensbench"):
        assert read_sealed(file) is None
        assert read_sealed(tmp_path / "b.json") is None  # another's content under this name
    assert caplog.text.count("is not used, and made again") == 2
    assert read_sealed(tmp_path / "none.json") is None


def test_a_changed_value_is_noticed(tmp_path: Path):
    file = tmp_path / "a.json"
    write_sealed(file, {"x": 1})
    file.write_text(json.dumps({**json.loads(file.read_text()), "content": {"x": 2}}))
    assert read_sealed(file) is None


def test_what_a_killed_process_left_is_swept_and_counted(isolated_cache: Path):
    folder = isolated_cache / "residuals"
    code = (
        "import os, signal, sys; from pathlib import Path; from lensbench.utils.cache import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'x').write_bytes(b'0' * 5000); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "entry")], check=False)
    assert contents()["unfinished"] == (1, 5000)
    assert contents()["residuals"] == (0, 0)
    mine = folder / f"{cache.unfinished_prefix('other')}aa.partial"
    mine.mkdir()  # of a process that still works
    young = folder / ".third.elsewhere.1.bb.partial"
    young.mkdir()  # of another machine
    with atomic_folder(folder / "next") as partial:
        (partial / "y").write_text("y")
        seal(partial, "next")
    assert sorted(path.name for path in folder.iterdir()) == sorted([mine.name, young.name, "next"])
    os.utime(young, (0, 0))
    sweep(folder)
    assert not young.exists()
    assert mine.exists()


@pytest.mark.parametrize("damage", [flip, cut, empty, no_seal])
def test_a_damaged_lens_is_learned_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model, learned = tiny.model("llama"), []

    def learn(_schedule: object) -> dict[str, torch.Tensor]:
        learned.append(1)
        return {"weight": torch.arange(12.0)}

    def again() -> dict[str, torch.Tensor]:
        return Corpus(model, cache=tmp_path).learn_once(LogitLens, {}, learn)

    assert torch.equal(again()["weight"], again()["weight"])
    assert len(learned) == 1
    (entry,) = tmp_path.glob("[!.]*")
    damage(entry, entry)
    with caplog.at_level(logging.WARNING, "lensbench"):
        assert torch.equal(again()["weight"], torch.arange(12.0))
    assert len(learned) == 2
    assert "is discarded and made again" in caplog.text
