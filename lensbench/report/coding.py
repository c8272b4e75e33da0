"""Tables as text in a page: columns coded as small integers, one after the other, compressed, in base64.

Layout: length of the header (uint32), header (JSON, UTF-8), columns, each beginning at a multiple of four bytes. All
numbers are little-endian. `page.js` reads it.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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
