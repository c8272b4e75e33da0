"""The page itself: one file with the plotting library, the data, and what reads it."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from lensbench.report.coding import (
    MAX_CHARACTERS,
    MAX_RECORDS,
    SCALE,
    ItemChunk,
    compress,
    encode_table,
    item_chunks,
    numbers,
    words,
)
from lensbench.report.content import PageRun
from lensbench.report.figure import FOLDER, beside, find_figures
from lensbench.report.page.measures import costs, measures
from lensbench.report.sentences import ResultSentence, result_sentences
from lensbench.report.style import colours
from lensbench.report.view import span
from lensbench.report.wording import readable
from lensbench.results.bands import MARGIN
from lensbench.results.records import ALL, CORRECTED, NO_BASELINE, without_nan
from lensbench.results.run_file import rules_of
from lensbench.results.summary import accuracy_column, best_layers
from lensbench.results.verdicts import USED, VERDICTS

HERE = Path(__file__).parent
# Between them stand the programs of the figures.
_FIRST, _LAST = ("page.js", "charts.js"), "items.js"
_NAMES = ("task", "relation", "site", "inspector", "baseline", "rule", "question", "strongest_baseline", "verdict")
_SHARES = ("accuracy_corrected", "accuracy", "ci_low", "ci_high", "chance", "gap", "gap_low", "gap_high")


def render(runs: Sequence[PageRun], records: int = MAX_RECORDS) -> str:
    """Return one page of some runs."""
    chunks = item_chunks(runs, records)
    data: dict[str, str] = {}
    interventions = any(_asks(run, USED) for run in runs)
    questions = {name: told for name, told in QUESTIONS.items() if name != USED or interventions}
    asked = {name: {"title": title, "text": text} for name, (title, text) in questions.items()}
    shown_runs = [{**_index(run, place, chunks[place], data), "questions": asked} for place, run in enumerate(runs)]
    index = {"runs": shown_runs, "all": ALL}
    data["index"] = compress(json.dumps(index, ensure_ascii=False, allow_nan=False).encode())
    library, licence = _library()
    data["plotly"] = compress(library.encode())
    scripts = [HERE / name for name in _FIRST]
    scripts += [path for name in find_figures() if (path := beside(name, ".js")).is_file()]
    program = "\n".join(path.read_text(encoding="utf-8") for path in (*scripts, HERE / _LAST))
    shown = [_shown(run, chunks[place], records) for place, run in enumerate(runs)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, FOLDER]), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("template.html.j2").render(
        runs=shown, data=data, licence=licence, program=_Verbatim(program), questions=questions,
        sections=_sections(),
        style=_Verbatim((HERE / "page.css").read_text(encoding="utf-8")),
        # What is not ours does not run, even if it came into the page.
        allowed=" ".join(f"'sha256-{_digest(code)}'" for code in (f"\n{program}\n", library)),
    )  # fmt: skip


class _Verbatim(str):
    """Our own code, which is not escaped."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


QUESTIONS: Mapping[str, tuple[str, str]] = {
    "uses_activation": (
        "Does it use the activation?",
        "The method's accuracy minus that of its strongest baseline without this subject's activation. Where a "
        "permutation test of whose activation is read can be made, it decides.",
    ),
    "beats_text": (
        "Does it beat the text?",
        "The method's accuracy minus that of the strongest reader of the input text.",
    ),
    "target_specific": (
        "Is it target-specific?",
        "The method's accuracy minus that of the strongest of all baselines, among them models that do not hold the "
        "fact. Only this gap can make a method privileged.",
    ),
    USED: (
        "Does the target use it?",
        "What the method reads is put in from an item with another answer: how far the target's own answer follows, as "
        "a share of what putting in that item's whole residual does, less the same for a random direction.",
    ),
}
"""What the gaps ask, and how they answer."""


def _asks(run: PageRun, question: str) -> bool:
    """Whether a run has an answer to a question."""
    return not run.summary.empty and bool((run.summary["question"] == question).any())


def _findings(run: PageRun) -> list[ResultSentence]:
    """One sentence for every task and site."""
    if run.summary.empty:
        return []
    score = str(run.info.get("setting", {}).get("score", CORRECTED))
    return list(result_sentences(best_layers(run.summary, score, rules_of(run.info)), run.info, run.relations))


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")


def _library() -> tuple[str, str]:
    """The plotting library, and the words of its licence, which stay readable."""
    # The bundle of 4.8 MB that comes with the Python package takes a browser a second to start.
    library = (HERE / "plotly-cartesian.min.js").read_text(encoding="utf-8")
    return library, library.partition("*/")[0].lstrip("/*").strip()


def _shown(run: PageRun, chunks: Sequence[ItemChunk], records: int) -> dict[str, Any]:
    """What the page says of a run without a program."""
    setting, versions = run.info.get("setting", {}), run.info.get("versions", {})
    facts = {
        "target": run.model, "verbalizer": "the target itself" if run.verbalizer == run.model else run.verbalizer,
        "layers": _spans(setting.get("layers", [])), "item limit": setting.get("limit") or "none",
        "seed": setting.get("seed"), "numbers": setting.get("dtype"), "device": setting.get("device"),
        "lensbench": versions.get("lensbench"), "commit": (run.info.get("git_commit") or "")[:12],
        "transformers": versions.get("transformers"), "machine": run.info.get("machine"),
    }  # fmt: skip
    kept, whole = sum(chunk.kept for chunk in chunks), sum(chunk.of for chunk in chunks)
    sampled = (
        f"The item browser shows {kept:,} of {whole:,} items, drawn evenly over relations: a page holds at most "
        f"{records:,} predictions (this run has {len(run.records):,}) and {MAX_CHARACTERS / 1e6:.1f} MB of "
        "items. All other figures are from all items."
        if kept < whole
        else ""
    )
    return {
        "name": run.name, "about": _about(run),
        "facts": {name: str(v) for name, v in facts.items() if v not in (None, "")},
        "findings": _findings(run), "problems": run.problems, "unanswered": dict(run.unanswered), "sampled": sampled,
        "calibrations": {readable(name): found for name, found in run.calibrations.items()},
        "calibrated": any(run.calibrations.values()), "costs": _with_shares(costs(run.info)),
        "measures": measures(run.metrics),
        "methods": _methods(run), "rivals": _baselines(run), "predictions": len(run.records),
    }  # fmt: skip


def _about(run: PageRun) -> str:
    """The model, the day, and how many subjects and items there are."""
    parts = [run.model, str(run.info.get("date", ""))]
    if len(run.records):
        seen = run.records[["task", "relation", "site", "item", "subject"]].astype(str).drop_duplicates()
        items, sites = seen.groupby("site")["item"].nunique(), seen["site"].nunique()
        parts.append(f"{len(seen[['task', 'subject']].drop_duplicates()):,} subjects")
        parts.append(f"{span(items)} items" + (f" at each of {sites} sites" if sites > 1 else ""))
        several = len(seen[["task", "relation"]].drop_duplicates())
        parts.append(f"{several} relation{'s' if several > 1 else ''}")
    return ", ".join(filter(None, parts))


def _spans(layers: Sequence[int]) -> str:
    if len(layers) > 6 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(str(layer) for layer in layers)


def _with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Costs with the widths of their bars, in per cent of the longest."""
    longest = max((row["seconds"] + row["rival_seconds"] for row in rows), default=0.0) or 1.0
    return [
        {**row, "own": 100 * row["seconds"] / longest, "rivals": 100 * row["rival_seconds"] / longest} for row in rows
    ]


def _names(run: PageRun) -> list[str]:
    planned = [str(cell.get("inspector")) for cell in run.info.get("cells", {}).values()]
    return sorted({*planned, *run.summary["inspector"].astype(str)})


def _methods(run: PageRun) -> list[dict[str, Any]]:
    palette = colours(_names(run))
    found = []
    for name in _names(run):
        text = run.methods.get(name)
        found.append({
            "name": name, "label": readable(name), "colour": palette[name],
            "summary": text.summary if text else "It is not installed here, so there is no description of it.",
            "reads": list(text.reads) if text else [], "learns_from": text.learns_from if text else "",
        })  # fmt: skip
    return found


def _baselines(run: PageRun) -> list[dict[str, str]]:
    used = set(run.summary["baseline"].astype(str)) - {NO_BASELINE}
    known = run.info.get("baselines", {})
    found = []
    for name in sorted(used):
        told = known.get(name, {})
        rules_out = str(told.get("rules_out", "The run does not say what it rules out."))
        if told.get("stride", 1) > 1:
            rules_out += (
                f" It was asked at layers {told['stride']} apart; between two, the better of its scores counts."
            )
        question = str(told.get("question", "diagnostic"))
        found.append({"name": name, "label": readable(name), "question": question, "rules_out": rules_out})
    return found


def _index(run: PageRun, number: int, chunks: Sequence[ItemChunk], data: dict[str, str]) -> dict[str, Any]:
    """What the page's program needs at once; larger tables are put into `data` and only named here."""
    tables = {one.anchor: one.table(run) for one in find_figures().values() if one.table is not None}
    tables["summary"] = summary_table(run.summary)
    items = {}
    for place, chunk in enumerate(chunks):
        items[f"{chunk.task}\t{chunk.site}"] = {"items": f"items-{number}-{place}", "rows": f"rows-{number}-{place}"}
        data |= {f"items-{number}-{place}": chunk.items, f"rows-{number}-{place}": chunk.rows}
    named = {kind: f"{kind}-{number}" for kind, coded in tables.items() if coded}
    data |= {named[kind]: coded for kind, coded in tables.items() if coded}
    there = list(places(run.summary, run.records))
    score = str(run.info.get("setting", {}).get("score", CORRECTED))
    return {
        "name": run.name, "model": run.model, "verbalizer": run.verbalizer, "tables": named, "items": items,
        "accuracy": accuracy_column(score),
        "methods": _methods(run), "rivals": _baselines(run), "margin": MARGIN, "holds": dict(VERDICTS),
        "places": there, "charts": _charts(run, there), "prose": list(run.info.get("prose", ())),
        "relations": [[*pair, text] for pair, text in run.relations.items()],
        "layers": run.info.get("setting", {}).get("layers", layers_of(run.summary)),
    }  # fmt: skip


def _charts(run: PageRun, there: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, Any]]:
    """The charts of figures that have no program of their own: by the figure, and by task, relation and site."""
    found: dict[str, dict[str, Any]] = {}
    for name, figure in find_figures().items():
        if figure.chart is not None:
            charts = {"\t".join(place): figure.chart(run, *place) for place in there}
            found[name] = {place: without_nan(asdict(chart)) for place, chart in charts.items() if chart is not None}
    return found


def _sections() -> list[dict[str, Any]]:
    """The sections of the page that figures have, in order; `file` is the template of one with a program of its own."""
    return [
        {"name": name, "anchor": figure.anchor or name, "title": figure.title, "label": figure.label or figure.title,
         "about": figure.about, "needs": figure.anchor if figure.table is not None else "",
         "file": f"{name}.html.j2" if beside(name, ".html.j2").is_file() else ""}
        for name, figure in find_figures().items()
        if figure.chart is not None or beside(name, ".html.j2").is_file()
    ]  # fmt: skip


def summary_table(summary: pd.DataFrame) -> str:
    """Code the summary for the figures."""
    columns = {name: words(summary[name]) for name in _NAMES}
    columns |= {name: numbers(summary[name], SCALE) for name in _SHARES}
    columns |= {name: numbers(summary[name]) for name in ("layer", "n", "subjects")}
    return encode_table(columns)


def layers_of(summary: pd.DataFrame) -> list[int]:
    """Return all layers that were read."""
    return sorted(int(layer) for layer in np.unique(summary["layer"].dropna().to_numpy(dtype=np.int64)))


def places(summary: pd.DataFrame, records: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield every (task, relation, site) that has results or items; totals first, none of a single relation."""
    pairs = [frame[["task", "relation", "site"]].astype(str).drop_duplicates() for frame in (summary, records)]
    together = pd.concat(pairs, ignore_index=True).drop_duplicates()
    for (task, site), rows in together.groupby(["task", "site"], sort=True):
        relations = sorted(set(rows["relation"]) - {ALL})
        totals = [ALL] if ALL in set(rows["relation"]) and len(relations) != 1 else []
        yield from ((str(task), relation, str(site)) for relation in (*totals, *relations))
