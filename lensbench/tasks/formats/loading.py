"""Loading with the `datasets` library, which is imported when it is needed: data sets of the Hub, folders, Parquet."""

import tempfile
from typing import Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.tasks.formats.spec import Source

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_rows(source: Source) -> list[dict[str, Any]]:
    """Rows of a data set, class labels by their names.

    Args:
        source: A data set of the Hub, or a local folder or file.

    Raises:
        UsageError: Several splits or configurations, of which none was named; nothing at that path.
        LensbenchError: The data set cannot be reached or read.
    """
    path = source.path
    if not source.is_remote and not path.exists():
        raise UsageError(f"{path}: no such file or folder; expected one that exists, or hf:ORG/NAME for the Hub")
    with tempfile.TemporaryDirectory() as scratch:
        # What is local is not copied into the cache of the library.
        loaded = _load(source, {} if source.is_remote else {"cache_dir": scratch, "keep_in_memory": True})
        return _named(_split(source, loaded))


def _load(source: Source, places: dict[str, Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path, config = source.path, source.option("config")
    builder = _BUILDERS.get(path.suffix.lower()) if path.is_file() else None
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path), keep_in_memory=True)
        if builder:
            more = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
            return datasets.load_dataset(builder, data_files=str(path), **places, **more)
        name = source.place if source.is_remote else str(path)
        return datasets.load_dataset(name, config, revision=source.option("revision"), **places)
    # The library reports a name that does not exist, and one that cannot be asked for, as a FileNotFoundError or
    # ConnectionError, and a malformed data set as almost anything.
    except OSError as error:
        raise LensbenchError(_unreachable(source, error)) from None
    except Exception as error:
        raise LensbenchError(_unreadable(source, error)) from None


def _unreachable(source: Source, error: Exception) -> str:
    if not source.is_remote:
        return _unreadable(source, error)
    return (
        f"{source.path}: the data set cannot be reached ({_one_line(error)}); check name and network, or download it "
        "elsewhere and give the file: data.parquet?subject=COLUMN&answer=COLUMN"
    )


def _unreadable(source: Source, error: Exception) -> str:
    return f"{source.path}: datasets cannot read it ({_one_line(error)}); expected a data set that it reads"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _split(source: Source, loaded: Any) -> Any:
    import datasets

    wanted = source.option("split")
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if wanted is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if wanted is None:
        raise UsageError(f"{source.path} has the splits {', '.join(loaded)}; choose one: ?split={next(iter(loaded))}")
    if wanted not in loaded:
        raise unknown_name(f"split of {source.path}", wanted, loaded)
    return loaded[wanted]


def _named(data: Any) -> list[dict[str, Any]]:
    import datasets

    labels = {key: kind for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    rows: list[dict[str, Any]] = data.to_list()
    for row in rows:
        for key, kind in labels.items():
            row[key] = kind.int2str(row[key]) if row[key] is not None and row[key] >= 0 else None
    return rows
