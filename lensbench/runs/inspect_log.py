"""A method's results on one relation and site as a log of inspect-ai, as `inspect view` and `read_eval_log` read it.

The form is that of version 2 of its `EvalLog`, in JSON; inspect-ai itself is not needed to write it.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lensbench.results.run_file import RUN_FILE
from lensbench.runs.run import Run

METRICS = ("acc", "acc_corrected")


def inspect_log(
    run: Run,
    row: Mapping[Any, Any],
    task: str,
    metrics: Mapping[str, float | str],
    samples: Iterable[Mapping[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """Return the name of a log, and its content.

    Args:
        run: whose it is.
        row: the method at its best layer, a row of `run.best`.
        task: the name of the relation at the site.
        metrics: what lm-evaluation-harness is told: `NAME,none` at the best layer, `NAME,layer_N`, and baselines.
        samples: those of lm-evaluation-harness, at the best layer.
    """
    seconds = (run.path / RUN_FILE).stat().st_mtime
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))
    name = f"{task}_{row['inspector']}".replace("_", "-")
    rows = [_sample(one, str(row["model"])) for one in samples]
    known = f"{run.path.resolve().name} {row['model']} {row['verbalizer']} {task} {row['inspector']}"
    number = hashlib.sha256(known.encode()).hexdigest()[:22]
    content = {
        "version": 2, "status": "success",
        "eval": _spec(run, row, name, number, when, [one["id"] for one in rows], metrics),
        "plan": {
            "name": "plan",
            "steps": [{"solver": f"lensbench/{row['inspector']}", "params": {"layer": _plain(row["layer"])}}],
            "config": {},
        },
        "results": {
            "total_samples": len(rows), "completed_samples": len(rows),
            "scores": [_score(metric, metrics) for metric in METRICS],
        },
        "stats": {"started_at": when, "completed_at": when, "model_usage": {}},
        "samples": rows,
    }  # fmt: skip
    safe = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name)
    return Path(f"{when.replace(':', '-')}_{safe}_{number}.json"), content


def _spec(
    run: Run,
    row: Mapping[Any, Any],
    name: str,
    number: str,
    when: str,
    ids: list[str],
    metrics: Mapping[str, float | str],
) -> dict[str, Any]:
    """What was asked, of which model, with which versions; the accuracies at other layers and of baselines besides."""
    setting, commit = run.info["setting"], run.info.get("git_commit")
    others = {key: value for key, value in metrics.items() if not key.endswith(",none") or key.startswith("rival_")}
    arguments = {key: setting[key] for key in ("dtype", "device", "model_args") if key in setting}
    return {
        "run_id": number, "task_id": number, "created": when, "task": name, "task_version": 0,
        "task_attribs": {}, "task_args": {key: str(row[key]) for key in ("task", "relation", "site", "inspector")},
        "dataset": {"name": str(row["task"]), "samples": len(ids), "sample_ids": ids, "shuffled": False},
        "model": f"lensbench/{row['model']}", "model_args": arguments,
        "config": {"epochs": 1, "limit": setting.get("limit")},
        "packages": dict(run.info.get("versions", {})),
        **({"revision": {"type": "git", "origin": "", "commit": commit}} if commit else {}),
        "metadata": {
            "best_layer": _plain(row["layer"]), "chance": float(row["chance"]), "verbalizer": str(row["verbalizer"]),
            **others,
        },
    }  # fmt: skip


def _plain(layer: Any) -> int | None:
    return int(layer) if isinstance(layer, int | float) and not math.isnan(layer) else None


def _score(name: str, metrics: Mapping[str, float | str]) -> dict[str, Any]:
    values = {"accuracy": metrics[f"{name},none"], "stderr": metrics[f"{name}_stderr,none"]}
    return {
        "name": name, "scorer": name, "params": {},
        "metrics": {
            key: {"name": key, "value": value, "params": {}} for key, value in values.items() if value != "N/A"
        },
    }  # fmt: skip


def _sample(one: Mapping[str, Any], model: str) -> dict[str, Any]:
    said, doc = one["filtered_resps"][0], one["doc"]
    message = {"role": "assistant", "content": said, "source": "generate", "model": f"lensbench/{model}"}
    return {
        "id": doc["item"], "epoch": 1, "input": doc["source"], "target": one["target"], "messages": [],
        "output": {
            "model": f"lensbench/{model}", "choices": [{"message": message, "stop_reason": "stop"}],
            "completion": said,
        },
        # What is shown as the answer is the prior-corrected one.
        "scores": {"acc": {"value": one["acc"]}, "acc_corrected": {"value": one["acc_corrected"], "answer": said}},
        "metadata": {key: value for key, value in doc.items() if key not in ("item", "source")},
        "store": {}, "events": [], "model_usage": {}, "attachments": {},
    }  # fmt: skip


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return a log as the bytes of its file."""
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False).encode()
