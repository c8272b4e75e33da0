"""What a page says of a run: a sentence of result a task and site, other measures, and what each method has cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lensbench.report.content import PageRun
from lensbench.report.style import readable
from lensbench.report.tables import number
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.summary import best_layers
from lensbench.results.verdicts import NO_VERDICT, VERDICTS

BASELINES_IN_WORDS: Mapping[str, str] = {
    "question_only": "the same prompt with nothing patched",
    "mean": "one mean activation for all items",
    "shuffled": "the activation of another subject",
    "gaussian": "noise shaped like activations",
    "choices_only": "the choice set alone",
    "majority": "one constant answer",
    "embedding": "the embedding of the token alone",
    "input_only": "the verbalizer, given the name in text,",
    "inversion": "the text decoded from the activation",
    "asked_in_text": "the target itself, asked in text,",
    "input_classifier": "a classifier of the spelling",
    "random_model": "the same network with random weights",
    "verbalizer_probe": "the same probe on the verbalizer",
    "unplanted": "the model without the fact",
    "twin": "a model that was told other facts",
    "reference_reader": "a reader that lacks the fact",
}
"""A rival as the subject of a sentence; others go by their names."""


@dataclass(frozen=True)
class ResultSentence:
    """What came of a task at a site.

    Attributes:
        task: name.
        relation: the one it is about, or `all`.
        site: where was read.
        sentence: the best method, its strongest rival, the verdict.
        others: the other methods at their best layers.
        verdict: of the question that decides, in short; empty where none was asked.
        holds: whether every question that was asked is answered in the method's favour.
    """

    task: str
    relation: str
    site: str
    sentence: str
    others: str
    verdict: str
    holds: bool


def findings(run: PageRun) -> list[ResultSentence]:
    """Return one finding for every task and site, on the task's totals or on its only relation."""
    if run.summary.empty:
        return []
    return list(_findings(run, best_layers(run.summary)))


def _findings(run: PageRun, best: pd.DataFrame) -> Iterator[ResultSentence]:
    for (task, site), rows in best.groupby(["task", "site"], observed=True, sort=True):
        relations = sorted(set(rows["relation"]) - {ALL})
        relation = relations[0] if len(relations) == 1 else ALL
        here = rows[rows["relation"] == relation].sort_values("accuracy_corrected", ascending=False, kind="stable")
        if here.empty:  # no relation that all methods answered
            yield ResultSentence(str(task), relations[0], str(site), _NO_TOTAL, "", "", False)
            continue
        first, *others = here.to_dict("records")
        question = _deciding(first)
        verdict = str(first[f"{question}_verdict"]) if question else ""
        yield ResultSentence(
            str(task), relation, str(site), _sentence(run, first, _counted(run, rows), question),
            ", ".join(f"{readable(row['inspector'])} {_score(row)}" for row in others),
            readable(verdict) or "no rival", bool(question) and verdict == VERDICTS.get(question, ""),
        )  # fmt: skip


_NO_TOTAL = "No relation of it was answered by all methods: choose one below."


def _counted(run: PageRun, rows: pd.DataFrame) -> str:
    """How many relations a total is over: those that all methods answered."""
    task = str(rows["task"].iloc[0])
    outside = {name for key in ("selected", "by_token") for name in run.info.get(key, ())}
    answered = {str(relation): set(part["inspector"]) for relation, part in rows.groupby("relation", observed=True)}
    answered.pop(ALL, None)
    counted = {name: methods for name, methods in answered.items() if f"{task}/{name}" not in outside}
    every = set().union(*counted.values())
    complete = sum(methods == every for methods in counted.values())
    if complete == len(counted):
        return f"{complete} relations"
    return f"the {complete} of {len(counted)} relations that all methods answered"


def _score(row: Mapping[Any, Any]) -> str:
    return number(row["accuracy_corrected"]) + ("" if pd.isna(row["layer"]) else f" at layer {row['layer']}")


def _deciding(row: Mapping[Any, Any]) -> str:
    """The first question that is not answered in the method's favour, or else the last one asked."""
    asked = [q for q in VERDICTS if f"{q}_verdict" in row and not pd.isna(row[f"{q}_verdict"])]
    return next((q for q in asked if row[f"{q}_verdict"] != VERDICTS[q]), asked[-1] if asked else "")


def _sentence(run: PageRun, row: Mapping[Any, Any], relations: str, question: str) -> str:
    task, relation, method = str(row["task"]), str(row["relation"]), _name(row["inspector"])
    prose = task in run.info.get("prose", ())
    what = readable(task) if relation == ALL else run.relations.get((task, relation), readable(relation))
    read = f"says the next token as the model does ({what})" if prose else f"reads {what}"
    place = "" if pd.isna(row["layer"]) else f" best at layer {row['layer']}"
    score = f"{number(row['accuracy_corrected'])}, band {number(row['ci_low'])} to {number(row['ci_high'])}"
    if relation == ALL:
        found = f"{score}; 0 is chance, 1 perfect; mean of {relations}"
    elif row["chance"] > 0:
        found = f"{score}, of {1 / row['chance']:.0f} choices"
    else:
        found = score
    return f"{method} {read}{place} ({found}){_against(run, row, question)}."


def _name(inspector: Any) -> str:
    name = readable(str(inspector))
    return name[:1].upper() + name[1:]


def _against(run: PageRun, row: Mapping[Any, Any], question: str) -> str:
    if not question:
        return "; no rival was run, so nothing is said of where the score comes from"
    verdict = str(row[f"{question}_verdict"])
    baseline = row[f"{question}_rival"]
    if pd.isna(baseline) or not baseline:
        return f"; {readable(verdict)}"
    subject = BASELINES_IN_WORDS.get(str(baseline), f"its strongest rival, {readable(str(baseline))},")
    asked = run.info.get("baselines", {}).get(str(baseline), {}).get("question", question)
    return f"; {subject} gets {number(row[f'{question}_rival_accuracy'])}: {_verdict(verdict, asked, row)}"


def _verdict(verdict: str, baselines_question: str, row: Mapping[Any, Any]) -> str:
    """The verdict as the end of a sentence."""
    if verdict.startswith("matched by"):
        matched = {"uses_activation": "without the activation", "beats_text": "by the text"}
        return f"matched {matched.get(baselines_question, 'without the fact')}"
    if verdict == "inconclusive":
        return f"too close to tell with {row['subjects']} subjects"
    if verdict == "inconclusive (raw score)":
        return "the gap holds for the corrected score alone, so nothing is claimed"
    if verdict == NO_VERDICT:
        return "no verdict, as the items were chosen by what the model says"
    return f"it {verdict}" if verdict in (VERDICTS["uses_activation"], VERDICTS["beats_text"]) else readable(verdict)


# A table in a page names about so many layers and rows; metrics.csv has all.
LAYERS, ROWS = 9, 150
# Selectivity is of a method, but told beside the labels that it is measured with.
OF_METHODS = frozenset({NO_BASELINE, "control_task"})

EXPLAINED: Mapping[str, str] = {
    "selectivity": "accuracy on true labels minus that on random labels of the same seen subjects",
    "accuracy_known": "corrected accuracy on facts that the model knows when asked",
    "accuracy_unknown": "corrected accuracy on the others",
    "detectable_gap": "the smallest true gap that a study of this size finds in 80 % of its repetitions",
    "oracle_expected": "what the best of all attempts would get with answers that have nothing to do with the truth",
}
"""Measures in words."""

# Of what hangs on no layer.
_NO_LAYER = -1
# Questions and rules that need not be named.
_UNTOLD = frozenset({"diagnostic", "fixed", "nan"})
_KEYS = ["task", "site", "relation", "metric", "question", "rule", "inspector"]


def measures(metrics: pd.DataFrame) -> dict[str, Any]:
    """Make the table of a run's measures.

    Args:
        metrics: the rows of metrics.csv.

    Returns:
        `layers` that are shown, `rows` (where, what, method, a value and interval a layer), how many rows are
        `left_out`, and what the measures mean.
    """
    if metrics.empty:
        return {"layers": [], "rows": [], "left_out": 0, "explained": {}}
    own = metrics[metrics["baseline"].isin(OF_METHODS)]
    layers = _spread(sorted({int(one) for one in own["layer"].dropna() if one >= 0}))
    rows = list(_rows(own, layers))
    named = {row["metric"] for row in rows[:ROWS]}
    return {
        "layers": layers, "rows": rows[:ROWS], "left_out": max(0, len(rows) - ROWS),
        "explained": {readable(name): text for name, text in EXPLAINED.items() if readable(name) in named},
    }  # fmt: skip


def _spread(layers: Sequence[int]) -> list[int]:
    if len(layers) <= LAYERS:
        return list(layers)
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, LAYERS)]


def _rows(own: pd.DataFrame, layers: Sequence[int]) -> Iterator[dict[str, Any]]:
    whole = own.groupby(["task", "site", "inspector", "metric"], observed=True)["relation"].transform(
        lambda relations: ALL if (relations == ALL).any() else ""
    )
    # Where there is a mean of all relations, it stands for them.
    told = own[(whole != ALL) | (own["relation"] == ALL)]
    for key, part in told.groupby(_KEYS, observed=True, sort=True, dropna=False):
        task, site, relation, metric, question, rule, method = map(str, key)
        values = {_NO_LAYER if pd.isna(row["layer"]) or row["layer"] < 0 else int(row["layer"]): row
                  for row in part.to_dict("records")}  # fmt: skip
        about = [readable(one) for one in (question, rule) if one not in _UNTOLD]
        yield {
            "where": f"{readable(task)}, {'all relations' if relation == ALL else readable(relation)}, {site}",
            "metric": readable(metric), "about": ", ".join(about), "method": readable(method),
            "cells": [_cell(values.get(layer, values.get(_NO_LAYER))) for layer in layers or (_NO_LAYER,)],
        }  # fmt: skip


def _cell(row: Mapping[Any, Any] | None) -> tuple[str, str]:
    """A value, and its interval in words."""
    if row is None or pd.isna(row["value"]):
        return "–", ""
    known = not (pd.isna(row["ci_low"]) or pd.isna(row["ci_high"]))
    return (
        f"{row['value']:.2f}",
        f"95 %: {row['ci_low']:.2f} to {row['ci_high']:.2f}, {row['n']} items" if known else "",
    )


def costs(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each method what it has taken, and what its rivals have: seconds, learning, memory, predictions."""
    found: dict[str, dict[str, Any]] = {}
    for cell in info.get("cells", {}).values():
        name = str(cell.get("inspector", "?"))
        row = found.setdefault(name, {"method": name, **dict.fromkeys(_COSTS, 0.0)})
        own = cell.get("baseline") == NO_BASELINE
        row["seconds" if own else "rival_seconds"] += float(cell.get("seconds") or 0.0)
        row["predictions"] += int(cell.get("rows") or 0)
        row["memory"] = max(row["memory"], float(cell.get("peak_memory_mb") or 0))
        for key, name in _LEARNING.items():
            row[name] += float(cell.get("fit", {}).get(key) or 0.0) if own else 0.0
    return [found[name] for name in sorted(found)]


_COSTS = ("seconds", "rival_seconds", "fit_seconds", "tokens", "labels", "memory", "predictions")
_LEARNING = {"seconds": "fit_seconds", "training_tokens": "tokens", "training_items": "labels"}
