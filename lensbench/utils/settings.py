"""Settings checked by pydantic: its first complaint as one line for users."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lensbench.errors import UsageError, unknown_name


def settings_error(error: ValidationError, known: Iterable[str], kind: str = "setting") -> UsageError:
    """Return the first thing that is wrong with settings as an error of one line.

    Args:
        error: what pydantic found.
        known: every name that could have been set.
        kind: what such a name is of, in the singular.
    """
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return unknown_name(kind, ".".join(place), known)
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        return unknown_name(place[0], first["input"], _choices(first))
    message = first["msg"].removeprefix("Value error, ")
    given = " ".join(repr(first["input"]).split())
    given = f"{'.'.join(place)} = {given:.80}{'...' * (len(given) > 80)}: " if place else ""
    return UsageError(f"{given}{message[0].lower()}{message[1:]}")


def _choices(found: ErrorDetails) -> list[str]:
    """The values of a Literal, as pydantic lists them in words: 'a', 'b' or 'c'."""
    context: dict[str, Any] = found.get("ctx", {})
    return str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
