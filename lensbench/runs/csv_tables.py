"""The tables of a run folder that are CSV files: written whole, and read with what is wrong with them said."""

import io
from pathlib import Path

import pandas as pd

from lensbench.errors import LensbenchError
from lensbench.utils.cache import atomic_file

_TEXT = {
    "model", "verbalizer", "task", "relation", "inspector", "other_inspector", "baseline", "site", "rule", "question",
    "strongest_baseline", "verdict", "metric", "better", "note",
}  # fmt: skip
"""The columns of tables that are names: they may look like numbers."""
AGAIN = "run `lensbench evaluate` again with the same --out, and it is made again"


def read_csv(path: Path) -> pd.DataFrame:
    """Read one of the tables that `finish` of a run writes.

    Raises:
        LensbenchError: it is missing or damaged.
    """
    try:
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            raise ValueError("it ends in the middle of a line")
        # Names may look like numbers: whatever is no number of ours is text.
        header = pd.read_csv(io.BytesIO(text), nrows=0).columns
        types = {name: "Int16" if name == "layer" else str for name in header if name in _TEXT or name == "layer"}
        return pd.read_csv(io.BytesIO(text), dtype=types, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise LensbenchError(f"{path.parent} has no {path.name}: {AGAIN}") from None
    except OSError as error:
        raise LensbenchError(f"{path} cannot be read ({error.strerror}): {AGAIN}") from None
    except (ValueError, TypeError) as error:  # pandas' own errors are ValueErrors
        raise LensbenchError(f"{path} is damaged ({error}): {AGAIN}") from None


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, whole or not at all."""
    with atomic_file(path) as file:
        file.write(frame.to_csv(index=False).encode())
