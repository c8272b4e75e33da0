"""A run in formats of others: CSV tables, the files of lm-evaluation-harness, the logs of inspect-ai."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.results.bands import sampled
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.run_file import RUN_FILE, rules_of
from lensbench.results.summary import by_their_rules
from lensbench.results.used import without_interventions
from lensbench.runs.inspect_log import as_json, inspect_log
from lensbench.runs.run import Run
from lensbench.tasks import load_tasks
from lensbench.utils.cache import atomic_file

LOG = logging.getLogger("lensbench")
FORMATS = ("csv", "lm-eval", "inspect")

_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d+(?:[.,]\d+)*$)")
"""How a text begins that a spreadsheet takes for a formula."""


def export(run: Run | Path | str, out: Path | str, format: str = "csv") -> list[Path]:
    """Write a run's results for other programs.

    Args:
        run: a run, or its folder.
        out: a folder; files of the same names in it are written anew.
        format: `csv` (records, summary, best layers, metrics, measures), `lm-eval` (a folder a method, with
            `results_TIME.json` and `samples_TASK_TIME.jsonl` as lm-evaluation-harness writes them) or `inspect` (a
            folder a method, with a log of inspect-ai for each relation and site).

    Returns:
        The files.

    Raises:
        UsageError: another format, or a folder that cannot be written to.
        LensbenchError: the run has no results.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    loaded = run if isinstance(run, Run) else Run(run)
    if not loaded.done:
        raise LensbenchError(f"{loaded.path} has no finished cell: run `lensbench evaluate` again with the same --out")
    files = {"csv": _tables, "lm-eval": _harness, "inspect": _logs}[format](loaded)
    folder, written = Path(out), []
    try:
        for name, content in files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(content)
            written.append(path)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    if not written:
        raise LensbenchError(f"{loaded.path} has no results of a method; look at it with `lensbench report`")
    return written


def _tables(run: Run) -> Iterator[tuple[Path, bytes]]:
    """The tables of a run as CSV; those without a row are left out."""
    # All are read before the first is written: one that is damaged leaves nothing half exported.
    frames: dict[str, pd.DataFrame] = {
        name: getattr(run, name) for name in ("records", "summary", "best", "metrics", "measures")
    }
    for name, frame in frames.items():
        if len(frame):
            yield Path(f"{name}.csv"), harmless(frame).to_csv(index=False, lineterminator="\n").encode()


def harmless(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without texts that a spreadsheet would run: a quote is put before what begins as a formula.

    Numbers such as `-5` stay as they are.
    """
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    changed: dict[str, Any] = {}
    for name in texts:
        column = frame[name].astype(object)
        formula = column.map(lambda text: isinstance(text, str) and bool(_FORMULA.match(text)))
        if formula.any():
            changed[str(name)] = column.where(~formula, "'" + column.astype(str))
    return frame.assign(**changed)


def _harness(run: Run) -> Iterator[tuple[Path, bytes]]:
    """The files of lm-evaluation-harness: a folder a method, a task a relation and site.

    `acc,none` is the method's accuracy at its best layer, `acc,layer_N` that at each layer; `acc_corrected` is
    prior-corrected; rivals' accuracies at the same layer stand beside it. Samples are those of the best layer.
    """
    when = time.strftime("%Y-%m-%dT%H-%M-%S.000000", time.gmtime((run.path / RUN_FILE).stat().st_mtime))
    for folder, results, asked in _methods(run):
        for task, row, here, samples in asked:
            results.add(task, row, here, samples)
            yield folder / f"samples_{task}_{when}.jsonl", b"".join(_json(one) + b"\n" for one in samples)
        yield folder / f"results_{when}.json", _json(results.content, indent=2)


def _logs(run: Run) -> Iterator[tuple[Path, bytes]]:
    """The logs of inspect-ai: a folder a method, a log a relation and site, with the figures of the harness's files."""
    for folder, results, asked in _methods(run):
        for task, row, here, samples in asked:
            results.add(task, row, here, samples)
            name, content = inspect_log(run, row, task, results.content["results"][task], samples)
            yield folder / name, as_json(content)


Asked = tuple[str, dict[Any, Any], pd.DataFrame, list[Any]]
"""A relation at a site: its name, the row of the best layers, the predictions, and the samples at the best layer."""


def _methods(run: Run) -> Iterator[tuple[Path, "_Results", Iterator[Asked]]]:
    """Each method with a folder's name, what is said of it, and what it was asked."""
    prompts = _prompts(run)
    records = run.records
    own = records[(records["baseline"] == NO_BASELINE).to_numpy()]
    best = run.best
    best = best[best["relation"] != ALL]
    for (model, verbalizer, inspector), rows in best.groupby(["model", "verbalizer", "inspector"], observed=True):
        named = model if verbalizer == model else f"{model}--{verbalizer}"
        folder = Path(re.sub(r'["<>:/|\\?*\[\]+]+', "__", f"{named}--{inspector}"))
        yield folder, _Results(run, str(model), str(inspector)), _asked(own, rows, prompts)


def _asked(own: pd.DataFrame, rows: pd.DataFrame, prompts: Mapping[tuple[str, str], str]) -> Iterator[Asked]:
    for row in rows.to_dict("records"):
        here = _rows_of(own, row)
        task = re.sub(r"\W", "_", f"{row['task']}_{row['relation']}_{row['site']}")
        yield task, row, here, list(_samples(here, row, prompts))


def _json(found: Any, indent: int | None = None) -> bytes:
    return json.dumps(found, ensure_ascii=False, indent=indent, allow_nan=False).encode()


def _rows_of(records: pd.DataFrame, row: Mapping[Any, Any]) -> pd.DataFrame:
    """A method's predictions of one relation and site, at its default attempt."""
    keys = ("model", "verbalizer", "task", "relation", "site", "inspector")
    rows = records[np.logical_and.reduce([(records[key] == row[key]).to_numpy() for key in keys])]
    default: pd.DataFrame = rows[(rows["attempt"] == rows["attempt"].iloc[0]).to_numpy()]
    return default


def _at(rows: pd.DataFrame, layer: Any) -> pd.DataFrame:
    return rows[rows["layer"].isna()] if pd.isna(layer) else rows[(rows["layer"] == layer).fillna(value=False)]


def _samples(rows: pd.DataFrame, row: Mapping[Any, Any], prompts: Mapping[tuple[str, str], str]) -> Iterator[Any]:
    """The samples of one task: what a method said of each item at its best layer."""
    layer = None if pd.isna(row["layer"]) else int(row["layer"])
    for number, one in enumerate(_at(rows, row["layer"]).to_dict("records")):
        prompt = prompts.get((one["task"], one["item"]), one["item"])
        doc: dict[str, Any] = {name: str(one[name]) for name in ("item", "subject", "relation", "site", "template")}
        doc |= {"source": prompt, "layer": layer}
        said = str(one["predicted_corrected"])
        yield {
            "doc_id": number, "doc": doc, "target": str(one["gold"]),
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"inspector": one["inspector"], "layer": layer}}},
            "resps": [[said]], "filtered_resps": [said], "filter": "none", "metrics": ["acc", "acc_corrected"],
            "doc_hash": _digest(_json(doc, indent=2)), "prompt_hash": _digest(prompt.encode()),
            "target_hash": _digest(str(one["gold"]).encode()),
            "acc": float(one["correct"]), "acc_corrected": float(one["correct_corrected"]),
        }  # fmt: skip


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Results:
    """What `results_TIME.json` says of one method.

    Args:
        run: whose it is.
        model: the target.
        inspector: the method.
    """

    def __init__(self, run: Run, model: str, inspector: str) -> None:
        ruled = by_their_rules(run.summary, rules_of(run.info))
        self.summary = ruled[ruled["inspector"] == inspector]
        asked = run.info["config"]
        self.content: dict[str, Any] = {
            **{name: {} for name in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better")},
            "n-samples": {},
            "config": {
                "model": "lensbench", "model_args": f"pretrained={model},inspector={inspector}",
                "model_dtype": run.info["setting"].get("dtype"), "device": run.info["setting"].get("device"),
                "limit": asked.get("limit"), "random_seed": asked.get("seed"), "batch_size": None, "num_fewshot": 0,
            },
            "git_hash": run.info.get("git_commit"), "date": (run.path / RUN_FILE).stat().st_mtime,
            "lensbench_version": run.info.get("versions", {}).get("lensbench"),
            "transformers_version": run.info.get("versions", {}).get("transformers"),
            "model_source": "lensbench", "model_name": model, "model_name_sanitized": model.replace("/", "__"),
            "task_hashes": {},
        }  # fmt: skip

    def add(self, task: str, row: Mapping[Any, Any], rows: pd.DataFrame, samples: list[Any]) -> None:
        """Add a task: a relation at a site."""
        metrics = {"alias": task, **_metrics(_at(rows, row["layer"]), "none"), **self._baselines(row)}
        for each in sorted(int(number) for number in rows["layer"].dropna().unique()):
            metrics |= _metrics(_at(rows, each), f"layer_{each}")
        names = sorted({name.partition(",")[0] for name in metrics if "," in name and "_stderr" not in name})
        layer = None if pd.isna(row["layer"]) else int(row["layer"])
        seen = "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)
        added: dict[str, Any] = {
            "results": metrics, "group_subtasks": [], "versions": 1, "n-shot": 0,
            "n-samples": {"original": len(samples), "effective": len(samples)},
            "higher_is_better": dict.fromkeys(names, True), "task_hashes": _digest(seen.encode()),
            "configs": {
                "task": task, "output_type": "generate_until", "num_fewshot": 0, "doc_to_text": "source",
                "metric_list": [
                    {"metric": name, "aggregation": "mean", "higher_is_better": True}
                    for name in ("acc", "acc_corrected")
                ],
                "metadata": {"version": 1, "best_layer": layer, "chance": float(row["chance"])},
            },
        }  # fmt: skip
        for name, value in added.items():
            self.content[name][task] = value

    def _baselines(self, row: Mapping[Any, Any]) -> dict[str, float]:
        """The rivals' accuracies at the method's best layer."""
        there = self.summary[
            np.logical_and.reduce([(self.summary[key] == row[key]).to_numpy() for key in ("task", "relation", "site")])
        ]
        there = _at(there[there["baseline"] != NO_BASELINE], row["layer"]).drop_duplicates("baseline")
        pairs = zip(there["baseline"], there["accuracy_corrected"], strict=True)
        return {f"rival_{name},none": float(value) for name, value in pairs}


def _metrics(rows: pd.DataFrame, name: str) -> dict[str, float | str]:
    """Accuracies with their standard errors; subjects, not items, are what was sampled."""
    found: dict[str, float | str] = {}
    for metric, column in (("acc", "correct"), ("acc_corrected", "correct_corrected")):
        mean = sampled(rows[column].to_numpy(np.float64)[:, None], rows["subject"].astype(str).to_numpy())
        found[f"{metric},{name}"] = float(mean.estimate[0])
        one = rows["subject"].nunique() < 2
        found[f"{metric}_stderr,{name}"] = "N/A" if one else float(np.sqrt(mean.variance[0]))
    return found


def _prompts(run: Run) -> dict[tuple[str, str], str]:
    """Source texts by task and item, of the tasks as they are now; items with another gold answer are left out."""
    seen = without_interventions(run.records).drop_duplicates(["task", "item"])
    golds = {
        (str(task), str(item)): str(gold)
        for task, item, gold in zip(seen["task"], seen["item"], seen["gold"], strict=True)
    }
    found: dict[tuple[str, str], str] = {}
    for spec in run.info["config"].get("tasks") or ():
        try:
            tasks = load_tasks([spec], offline=True)
        except LensbenchError as error:
            LOG.warning("%s: samples have the item's name in place of its text (%s)", spec, str(error).splitlines()[0])
            continue
        for task in tasks:
            items = (item for site in task.sites for item in task.items(site, "test"))
            found |= {
                (task.name, item.id): item.source for item in items if golds.get((task.name, item.id)) == item.answer
            }
    return found
