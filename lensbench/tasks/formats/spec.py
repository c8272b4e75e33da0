"""What `--tasks` says about a file of another format: `lre:FILE.json`, `data.csv?subject=name&answer=capital`."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from lensbench.errors import UsageError, unknown_name

FILE_SCHEMES = ("lre", "patchscopes", "hopping", "personaqa")
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_COMMON = ("name", "question")
_COLUMNS = ("subject", "answer", "relation", "source", "prompt", "question", "aliases", "choices")
OPTIONS = {
    **dict.fromkeys(FILE_SCHEMES, _COMMON),
    "table": ("name", *_COLUMNS),
    "hf": ("name", *_COLUMNS, "split", "config", "revision"),
}


@dataclass(frozen=True)
class Source:
    """A file or data set of another format, and how its columns are to be read.

    Attributes:
        scheme: `lre`, `patchscopes`, `hopping`, `personaqa`, `hf`, or `table` for a file without a scheme.
        place: the path, or the name of a data set on the Hub.
        options: what stands behind the `?`, by key, in alphabetical order.
    """

    scheme: str
    place: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> Path:
        """Where the file is; for a data set of the Hub a path that only names it."""
        return Path(f"hf:{self.place}") if self.is_remote else Path(self.place).expanduser()

    @property
    def is_remote(self) -> bool:
        """Whether the place is the name of a data set on the Hub."""
        return self.scheme == "hf" and not _is_local(self.place)

    def option(self, key: str) -> str | None:
        """Value of an option; None where it was not given."""
        return dict(self.options).get(key)


def parse_spec(spec: str) -> tuple[Source, str] | None:
    """Read a specification that has a scheme, or is a table's path.

    Args:
        spec: Such as `lre:FILE.json`, `hf:ORG/NAME?split=test&subject=name&answer=job`, `data.csv/RELATION?...`.

    Returns:
        The source and the relation that was named ("" for all); None where this is no file of another format.

    Raises:
        UsageError: An unknown scheme or option, or options in another form.
    """
    head, _, query = spec.partition("?")
    scheme, colon, place = head.partition(":")
    if not colon or scheme not in OPTIONS or scheme == "table":
        if _looks_like_scheme(head):
            raise unknown_name("format", scheme, [*FILE_SCHEMES, "hf"], "see docs/readers.md")
        if not any(Path(part).suffix.lower() in TABLE_ENDINGS for part in (head, str(Path(head).parent))):
            return None
        scheme, place = "table", head
    if not place:
        _refuse(spec, f"{scheme}: and a file" if scheme != "hf" else "hf:ORG/NAME, or hf: and a path")
    place, relation = _split_relation(spec, scheme, place)
    return Source(scheme, place, _parse_options(spec, scheme, query)), relation


def _looks_like_scheme(head: str) -> bool:
    scheme, colon, _ = head.partition(":")
    # One letter is a drive of Windows.
    return bool(colon) and len(scheme) > 1 and scheme.isidentifier() and not Path(head).exists()


def _is_local(place: str) -> bool:
    path = Path(place).expanduser()
    return path.exists() or path.is_absolute() or place.startswith((".", "~")) or path.suffix in TABLE_ENDINGS


def _split_relation(spec: str, scheme: str, place: str) -> tuple[str, str]:
    path = Path(place).expanduser()
    if scheme == "hf" and not _is_local(place):
        parts = place.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            _refuse(spec, "hf:ORG/NAME, hf:ORG/NAME/RELATION, or hf: and a path that exists")
        return "/".join(parts[:2]), "".join(parts[2:])
    before, slash, last = place.rpartition("/")
    nothing_there = not path.exists() and slash
    if nothing_there and (path.parent.is_file() or (scheme == "hf" and path.parent.is_dir() and not path.suffix)):
        return before, last
    return place, ""


def _parse_options(spec: str, scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            _refuse(spec, f"KEY=VALUE in {part!r}, such as subject=name")
        if key not in OPTIONS[scheme]:
            raise unknown_name(f"option of {scheme}{':' if scheme != 'table' else ''}", key, OPTIONS[scheme])
        if key in options:
            _refuse(spec, f"each option once, and {key!r} is there twice")
        # A comma, which separates tasks, and an & can be written %2C and %26.
        options[key] = unquote(value)
    return tuple(sorted(options.items()))


def _refuse(spec: str, expected: str) -> NoReturn:
    raise UsageError(f"task {spec!r}: expected {expected}; see docs/readers.md")
