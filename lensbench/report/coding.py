"""The tables and items of a page as text: columns of small integers, one after the other, compressed, in base64.

Layout: length of the header (uint32), header (JSON, UTF-8), columns, each beginning at a multiple of four bytes. All
numbers are little-endian. `page.js` reads it. Of the items all are coded, or a sample where all would make the page
too large.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lensbench.report.content import ItemText, PageRun
from lensbench.results.used import without_interventions

SCALE = 1_000_000
"""Of shares: the two decimals that are shown must be those of the sentences, which round the whole figure."""
_UNSIGNED = ((2**8, "u1"), (2**16, "u2"), (2**32, "u4"))
_SIGNED = ((2**7, "i1"), (2**15, "i2"), (2**31, "i4"))


@dataclass(frozen=True)
class Column:
    """A coded column: `values` are codes into `words`, or whole numbers to be divided by `scale`.

    The smallest number of a signed type stands for a missing value.
    """

    values: np.ndarray
    scale: int | None = None
    words: Sequence[str | None] | None = None


def words(column: "pd.Series[Any]") -> Column:
    """Code a column of strings; missing ones become null."""
    codes, found = pd.factorize(column.astype(object), use_na_sentinel=False)
    names = [None if pd.isna(word) else str(word) for word in found]
    kind = next(name for size, name in _UNSIGNED if len(names) <= size)
    return Column(codes.astype(f"<{kind}"), words=names)


def numbers(column: "pd.Series[Any]", scale: int = 1) -> Column:
    """Code a column of numbers as whole multiples of 1 / scale."""
    values = column.to_numpy(dtype=np.float64, na_value=np.nan) * scale
    known = np.isfinite(values)
    highest = float(np.rint(np.abs(values[known])).max(initial=0.0))
    size, kind = next((size, name) for size, name in _SIGNED if highest < size)
    whole = np.where(known, np.rint(np.where(known, values, 0.0)), -size)
    return Column(whole.astype(f"<{kind}"), scale=scale)


def encode_table(columns: Mapping[str, Column]) -> str:
    """Put columns of one length into compressed base64."""
    rows = {len(column.values) for column in columns.values()}
    if len(rows) > 1:
        raise ValueError(f"columns of one table must be equally long, got {sorted(rows)}")
    parts, described, place = [], [], 0
    for name, column in columns.items():
        data = column.values.tobytes()
        data += b"\0" * (-len(data) % 4)
        kind = column.values.dtype.str[1:]
        described.append({"name": name, "type": kind, "at": place, "scale": column.scale, "words": column.words})
        parts.append(data)
        place += len(data)
    header = json.dumps({"rows": max(rows, default=0), "columns": described}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 4)
    return compress(len(header).to_bytes(4, "little") + header + b"".join(parts))


def compress(data: bytes) -> str:
    """Compress to base64; the same bytes each time."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


MAX_RECORDS = 250_000
"""Above so many predictions, over all runs of a page, items are sampled."""
MAX_CHARACTERS = 3_500_000
"""What all items of a page may take, compressed and coded: long generated texts are sampled sooner."""
_ROW = ["inspector", "baseline", "attempt", "item", "layer"]


@dataclass(frozen=True)
class ItemChunk:
    """The items of a task and site with all their predictions.

    Attributes:
        task: name.
        site: name.
        items: coded table, one row an item.
        rows: coded table, one row a prediction.
        kept: how many items are in it.
        of: how many the run has.
    """

    task: str
    site: str
    items: str
    rows: str
    kept: int
    of: int

    @property
    def characters(self) -> int:
        """What it takes in the page."""
        return len(self.items) + len(self.rows)


def item_chunks(
    runs: Sequence[PageRun], records: int = MAX_RECORDS, characters: int = MAX_CHARACTERS
) -> list[list[ItemChunk]]:
    """Code the items of each run, sampled as far as needed to stay below both limits.

    A sample has the same share of every relation (at least one item), with all predictions of each item that is kept.
    Which ones are kept depends on their names alone.
    """
    total = sum(len(run.records) for run in runs)
    share = min(1.0, records / total) if total else 1.0
    while True:
        found = [_chunks(run, share) for run in runs]
        size = sum(chunk.characters for chunks in found for chunk in chunks)
        smallest = all(chunk.kept <= 1 for chunks in found for chunk in chunks)
        if size <= characters or smallest or share < 1e-5:
            return found
        share *= min(0.9, 0.95 * characters / size)


def _chunks(run: PageRun, share: float) -> list[ItemChunk]:
    if run.records.empty:
        return []
    groups = run.records.groupby(["task", "site"], observed=True, sort=True)
    return [_chunk(run, str(task), str(site), rows, share) for (task, site), rows in groups]


def _chunk(run: PageRun, task: str, site: str, rows: pd.DataFrame, share: float) -> ItemChunk:
    # An intervention asks an item about another's answer.
    items = without_interventions(rows).drop_duplicates("item")
    kept = items[_sample(items, share)]
    rows = rows[rows["item"].isin(kept["item"])] if len(kept) < len(items) else rows
    order = [str(name) for name in kept["item"]]
    numbers_of = {name: place for place, name in enumerate(order)}
    places = rows["item"].astype(str).map(numbers_of)
    texts = [_text(run.texts, task, item) for item in order]
    return ItemChunk(task, site, _item_table(kept, texts), _row_table(rows.assign(item=places)), len(kept), len(items))


def _sample(items: pd.DataFrame, share: float) -> np.ndarray:
    """Whether an item is kept: in each relation the share of those whose names come first by their hash."""
    keep = np.ones(len(items), dtype=bool)
    if share >= 1.0:
        return keep
    relation = items["relation"].astype(str).to_numpy()
    # By subject, so that two sites show the same ones.
    names = items["subject"].astype(str) + "/" + items["template"].astype(str)
    ranks = np.array([hashlib.sha256(name.encode(errors="replace")).hexdigest() for name in names])
    for one in np.unique(relation):
        here = np.flatnonzero(relation == one)
        order = here[np.argsort(ranks[here], kind="stable")]
        keep[order[math.ceil(share * len(here)) :]] = False
    return keep


def _text(texts: Mapping[tuple[str, str], ItemText], task: str, item: str) -> ItemText | None:
    found = texts.get((task, item))
    if found is None and "@" in item:  # a name cut after some of its tokens, or a position of prose
        found = texts.get((task, item.rpartition("@")[0]))
    return found


def _item_table(items: pd.DataFrame, texts: Sequence[ItemText | None]) -> str:
    def text(name: str) -> "pd.Series[str]":
        return pd.Series([None if one is None else getattr(one, name) for one in texts], dtype=object)

    columns = {name: words(items[name]) for name in ("item", "relation", "subject", "gold", "template")}
    columns |= {name: words(text(name)) for name in ("source", "note", "question")}
    columns |= {name: numbers(text(name)) for name in ("start", "end")}
    columns |= {"known": numbers(items["known"]), "chance": numbers(items["chance"], 10_000)}
    return encode_table(columns)


def _row_table(rows: pd.DataFrame) -> str:
    # One prediction's neighbours are those at the layers beside it, which are mostly the same.
    rows = rows.sort_values(_ROW, kind="stable")
    columns = {name: words(rows[name]) for name in ("inspector", "baseline", "attempt")}
    columns |= {"item": numbers(rows["item"]), "layer": numbers(rows["layer"])}
    columns |= {"predicted": words(rows["predicted_corrected"]), "credit": numbers(rows["correct_corrected"], 100)}
    columns |= {"rank": numbers(rows["gold_rank"]), "log_prob": numbers(rows["gold_log_prob"].clip(-300, 300), 100)}
    columns |= {"text": words(rows["text"]), "said": numbers(rows["open_correct"])}
    return encode_table(columns)
