"""Scores of generated texts that need another model: similarity to the description, and the marks of a judge.

Both read a run folder and add to its measures; the model that was inspected is not needed.
"""

import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.journal import hold_folder
from lensbench.results.arrays import KEYS
from lensbench.results.records import JUDGED, MEASURES, measure_table, write_json_atomic, write_table
from lensbench.results.run_file import RUN_FILE, read_run
from lensbench.runs.run import Run, finish
from lensbench.utils.foreign import FOREIGN

LOG = logging.getLogger("lensbench")

SIMILARITY, MARK = "embedding_similarity", "judge_mark"
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
KEY_VARIABLE = "LENSBENCH_JUDGE_KEY"
MEASURED_BY = (*KEYS, "relation", "layer", "attempt", "item", "subject")
"""What a mark is of, as measures name it."""
INVENTED = "unknown"
"""The gold answer of an invented name."""

RUBRIC = """You mark one line that a program wrote about a name. Compare it with what is known about the name.

10: says who or what it is and what it is known for, without a mistake
7 to 9: right, but general, or with a slip that misleads nobody
4 to 6: right about the kind of thing, wrong or silent about the rest
2 to 3: wrong, but near: the same field, place or time
1: wrong, empty, or about something else

If nothing is known about the name because it is invented, a line that claims nothing about it gets 10, and one that
makes something up gets 1.

Name: {subject}
Known: {reference}
Line: {text}

Answer with one whole number from 1 to 10.
Mark:"""

Ask = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class Judge:
    """The models that grade texts.

    Attributes:
        name: how messages call it.
        ask: returns an answer for each prompt.
    """

    name: str
    ask: Ask


def local_judge(model: str) -> Judge:
    """Return a judge that is a local model, greedy."""
    from lensbench.models.loading import load_model
    from lensbench.models.prompting import continue_texts

    loaded = load_model(model)
    return Judge(loaded.name, lambda prompts: continue_texts(loaded, prompts, 6))


def endpoint_judge(url: str, model: str, timeout: float = 60.0) -> Judge:
    """Return a judge behind an OpenAI-compatible endpoint (`.../v1`); its key is taken from `LENSBENCH_JUDGE_KEY`."""
    parts = urlsplit(url)
    # A key may be part of the address: it is used, and neither kept nor shown.
    address = urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment=""))
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def ask(prompts: Sequence[str]) -> list[str]:
        answers: list[str] = []
        for prompt in prompts:
            try:
                answers.append(_post(address, shown, model, prompt, timeout))
            except LensbenchError as error:
                if not any(answers):
                    raise
                # One that fails among many is a missing mark.
                LOG.warning("%s", error)
                answers.append("")
        return answers

    return Judge(f"{model} at {shown}", ask)


LONGEST_ANSWER = 2**20
"""Bytes that are read of an endpoint's answer."""


def _post(url: str, shown: str, model: str, prompt: str, timeout: float) -> str:
    """Ask once; the whole answer must be there in time."""
    body = {"model": model, "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": prompt}]}
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"judge {shown!r}: expected the address of an endpoint, such as http://localhost:8000/v1")
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    if key := os.environ.get(KEY_VARIABLE):
        # Not for another host that the endpoint sends us on to.
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = json.loads(_read_in_time(answer, timeout))["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise ValueError(f"its content is a {type(content).__name__}")
        return content
    except (http.client.HTTPException, *FOREIGN) as error:
        why = f"{type(error).__name__}: {error}".replace(url, shown)[:300].encode("unicode_escape").decode()
        raise LensbenchError(
            f"the judge at {shown} gave no answer ({why}); is it an OpenAI-compatible endpoint?"
        ) from None


def _read_in_time(answer: Any, seconds: float) -> bytes:
    """Read an answer, which may come drop by drop and without end.

    Raises:
        ValueError: it is too long.
        TimeoutError: it takes too long.
    """
    ends, content = time.monotonic() + seconds, b""
    while part := answer.read1(2**16):
        content += part
        if len(content) > LONGEST_ANSWER:
            raise ValueError(f"more than {LONGEST_ANSWER} bytes")
        if time.monotonic() > ends:
            raise TimeoutError(f"not whole after {seconds:g} seconds")
    return content


def encoder(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Return what turns texts into unit vectors: a sentence-transformers model, by name or folder.

    Raises:
        UsageError: sentence-transformers is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            "embedding similarity needs sentence-transformers; install it with: pip install 'lensbench[similarity]'"
        ) from None
    try:
        loaded = SentenceTransformer(model)
    except Exception as error:  # hub, file and configuration errors of many kinds
        reason = str(error).partition("\n")[0]
        raise UsageError(f"encoder {model!r} cannot be loaded ({reason}); give the folder of a local one") from None
    return lambda texts: np.asarray(loaded.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))


def said(run: Run, limit: int | None = None) -> pd.DataFrame:
    """Return the records that have a text, with `reference`, what is known of the item; at most `limit` items.

    Raises:
        LensbenchError: the run has no texts.
    """
    records = run.records
    records = records[records["text"].notna()]
    if not len(records):
        raise LensbenchError(f"{run.path} has no generated texts; run a method that generates on entity_resolution")
    if limit is not None:
        drawn = sorted(records["item"].astype(str).unique(), key=lambda name: hashlib.sha256(name.encode()).digest())
        records = records[records["item"].isin(drawn[:limit])]
    invented = records["gold"].astype(str) == INVENTED
    reference = records["gold"].astype(str).where(~invented, "nothing: the name is invented")
    return records.assign(reference=reference)


def similarity(run_path: Path, model: str = DEFAULT_ENCODER, limit: int | None = None) -> int:
    """Add the cosine of text and description in a sentence encoder, for items that are described; return how many."""
    run = Run(run_path)
    encode = encoder(model)
    records = said(run, limit)
    records = records[records["gold"].astype(str).str.count(" ") >= 2]  # a description, not a class
    texts = sorted({*records["text"], *records["reference"]})
    vector = dict(zip(texts, encode(texts), strict=True)) if texts else {}
    pairs = zip(records["text"], records["reference"], strict=True)
    values = [float(vector[text] @ vector[reference]) for text, reference in pairs]
    return _add(run, records, SIMILARITY, values, model)


def mark(run_path: Path, judge: Judge, limit: int | None = None) -> int:
    """Add a judge's marks, 1 to 10; return how many.

    Raises:
        LensbenchError: the judge gives no number for more than a tenth of the texts.
    """
    run = Run(run_path)
    records = said(run, limit)
    rows = list(zip(records["subject"].astype(str), records["reference"], records["text"], strict=True))
    prompts = {
        row: RUBRIC.format(subject=row[0], reference=row[1], text=" ".join(str(row[2]).split())) for row in set(rows)
    }
    asked = sorted(prompts)
    marks = dict(zip(asked, map(read_mark, judge.ask([prompts[row] for row in asked])), strict=True))
    missing = sum(value is None for value in marks.values())
    if missing > len(marks) / 10:
        raise LensbenchError(f"judge {judge.name} gave no mark from 1 to 10 for {missing} of {len(marks)} texts")
    keep = [marks[row] is not None for row in rows]
    values = [float(marks[row] or 0) for row in rows if marks[row] is not None]
    return _add(run, records[keep], MARK, values, judge.name)


def read_mark(answer: str) -> int | None:
    """Return the whole number from 1 to 10 that an answer begins with (also "Mark: 7", "7/10"); else None."""
    found = re.match(r"\W*(?:mark\W*)?(10|[1-9])(?![\d])(?![.,]\d)", answer, re.IGNORECASE)
    return int(found.group(1)) if found else None


def _add(run: Run, records: pd.DataFrame, metric: str, values: list[float], who: str) -> int:
    columns: dict[str, list[Any]] = {key: records[key].astype(object).tolist() for key in MEASURED_BY}
    columns["layer"] = [None if pd.isna(layer) else int(layer) for layer in columns["layer"]]
    table = measure_table({**columns, "metric": [metric] * len(values), "value": values})
    with hold_folder(run.path):
        # What stands there now: another process may have worked in the folder while the judge was asked.
        now = read_run(run.path)
        if {file: now["cells"].get(file) for file in run.done} != {file: run.info["cells"][file] for file in run.done}:
            raise LensbenchError(
                f"{run.path} was changed while its texts were marked, so the marks are not kept: mark them again"
            )
        write_table(run.path / MEASURES / f"{JUDGED}{metric}.parquet", table)
        info = {**now, "judges": {**now.get("judges", {}), metric: who}}
        write_json_atomic(run.path / RUN_FILE, info)
        finish(run.path)
    return len(values)
