"""`lensbench implant`: what is expected of an implant, and the exit status where it misses that."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lensbench.cli import main
from lensbench.implants import planting


def description(recall: float, kl: float = 0.01, design: str = "plain") -> dict[str, Any]:
    found = {"city": recall}
    figures = {
        "recall": found, "recall_held_out": found, "recall_continuing": found, "localisation": {"edit": found},
        "norm_reader": {"city": 0.1}, "kl_prose": kl, "known_facts": {"known": 10, "lost": 0},
    }  # fmt: skip
    return {"design": design, "layers": [8], "attributes": ["city"], "figures": figures}


@pytest.mark.parametrize(
    ("made", "status", "told"),
    [
        (description(0.9), 0, ""),
        (description(0.2), 1, "recall held out, city is 0.20, expected ≥ 0.85"),
        (description(0.7, design="relay"), 0, ""),
        (description(0.2, design="sham"), 0, ""),
        (description(0.9, kl=0.5), 1, "KL on prose (nats) is 0.5000, expected < 0.05"),
    ],
)
def test_an_implant_that_misses_what_is_expected_ends_with_1(
    made: dict[str, Any],
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(planting, "implant", lambda *_: made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lensbench", "implant", "--layer", "8", "--out", "x", "--json", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code or 0) == status
    assert told in said.err
    assert bool(json.loads(said.out)["missed"]) == bool(status)
