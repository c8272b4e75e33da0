"""Run folders with made-up records, of any size and with any names: no model is asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lensbench.results.records import NO_BASELINE, RECORDS, table_from_columns, write_shard

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</script><script>alert(3)</script>",
    "القاهرة", "עברית 123", "👩‍👩‍👧 🏳️‍🌈", "<b>bold</b> & <a href='javascript:alert(4)'>", "{{ 7 * 7 }}", "Zoë",
)  # fmt: skip
RIVALS = {
    "shuffled": ("uses_activation", "The score comes from any activation of the kind."),
    "input_only": ("beats_text", "The score comes from the input text."),
    "control_task": ("diagnostic", "The score comes from memorising subjects."),
}


@dataclass(frozen=True)
class Made:
    """What a made-up run is like.

    Attributes:
        accuracy: of each method at its best layer; it rises from chance to there and falls again.
        rivals: of each rival, at all layers.
        attempts: of the method that is called patchscope.
        subjects: how many a relation has; hostile names come first.
        says: whether the method called patchscope generates texts.
    """

    accuracy: Mapping[str, float] = field(default_factory=lambda: {"patchscope": 0.9, "logit_lens": 0.4})
    rivals: Mapping[str, float] = field(default_factory=lambda: {"shuffled": 0.15, "input_only": 0.9})
    attempts: Sequence[str] = ("default",)
    task: str = "facts"
    relations: Sequence[str] = ("capital", "currency")
    sites: Sequence[str] = ("subject",)
    layers: Sequence[int] = (0, 1, 2, 3)
    subjects: int = 20
    hostile: bool = False
    says: bool = False
    seed: int = 0


def write_run(folder: Path, made: Made) -> Path:
    """Write `run.json` and the records, not the summary."""
    cells: dict[str, dict[str, Any]] = {}
    (folder / RECORDS).mkdir(parents=True)
    for site in made.sites:
        for method, top in made.accuracy.items():
            for place, rival in enumerate((NO_BASELINE, *made.rivals)):
                height = top if rival == NO_BASELINE else made.rivals[rival]
                table = _records(made, site, method, rival, height)
                # Names of tasks and methods may be hostile; those of files are digests.
                file = f"{site}-{list(made.accuracy).index(method)}-{place}.parquet"
                write_shard(folder / RECORDS / file, table)
                cells[file] = {
                    "task": made.task, "site": site, "inspector": method, "baseline": rival, "status": "done",
                    "rows": len(table), "seconds": 1.5, "peak_memory_mb": 500, "relations": list(made.relations),
                    "method": "0" * 12,
                }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(_info(made, cells)), encoding="utf-8")
    return folder


def _info(made: Made, cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": {"tasks": [], "model": "tiny"}, "plan": list(cells), "cells": cells, "due": {}, "calibration": {},
        "n_layers": max(made.layers),
        "setting": {"model": "tiny", "verbalizer": "tiny", "layers": list(made.layers), "seed": 0, "limit": None},
        "baselines": {
            name: dict(zip(("question", "rules_out"), RIVALS.get(name, ("beats_text", f"The score is {name}.")),
                           strict=True))
            for name in made.rivals
        },
    }  # fmt: skip


def names_of(made: Made) -> list[str]:
    usual = [f"Subject {i:04}" for i in range(made.subjects)]
    return [*HOSTILE, *usual][: made.subjects] if made.hostile else usual


def _records(made: Made, site: str, method: str, rival: str, height: float) -> pa.Table:
    answers = [f"answer {i}" for i in range(8)] if not made.hostile else [*HOSTILE[:8]]
    attempts = made.attempts if method == "patchscope" and rival == NO_BASELINE else made.attempts[:1]
    layers = [None] if rival == "input_only" else list(made.layers)
    shape = (len(made.relations), len(attempts), len(layers), made.subjects)
    relation, attempt, layer, subject = (axis.ravel() for axis in np.indices(shape))
    rng = np.random.default_rng([made.seed, len(method), len(rival), len(site)])
    middle = (len(layers) - 1) / 2
    rise = 1.0 if rival != NO_BASELINE else 1 - np.abs(layer - middle) / (middle + 1)
    right = rng.random(relation.size) < 0.125 + (height - 0.125) * rise
    gold = subject % len(answers)
    said = np.where(right, gold, (gold + 1 + rng.integers(0, len(answers) - 1, relation.size)) % len(answers))
    names, text = names_of(made), made.says and method == "patchscope"
    items = [f"{made.relations[r]}/{names[s]}/{site}/test0" for r, s in zip(relation, subject, strict=True)]
    return table_from_columns({
        "model": "tiny", "verbalizer": "tiny", "task": made.task, "inspector": method, "baseline": rival, "site": site,
        "relation": [made.relations[i] for i in relation], "layer": [layers[i] for i in layer],
        "attempt": [attempts[i] for i in attempt], "item": items, "subject": [names[i] for i in subject],
        "gold": [answers[i] for i in gold], "predicted": [answers[i] for i in said],
        "predicted_corrected": [answers[i] for i in said], "correct": right.astype(np.float32),
        "correct_corrected": right.astype(np.float32), "gold_log_prob": rng.normal(-6, 3, relation.size),
        "gold_rank": rng.integers(0, 49152, relation.size), "chance": 1 / len(answers), "template": "test0",
        "text": [f"said of {names[s]} at {i}" for i, s in enumerate(subject)] if text else None,
        "open_correct": right if text else None, "known": (subject % 2).astype(bool), "fold": subject % 5, "seed": 0,
    })  # fmt: skip
