"""The errors that lensbench shows to its users, one line each, and the exit status that each of them has."""

import difflib
from collections.abc import Iterable

_SHORT_LIST = 12


class LensbenchError(Exception):
    """Something failed. The message says what was given, what was expected and the next step. Exit status 1."""

    exit_status = 1


class UsageError(LensbenchError):
    """The command or call was wrong, and nothing has been started. Exit status 2."""

    exit_status = 2


class TokenError(LensbenchError):
    """A text that the tokenizer cannot serve: a span it cannot locate, a site at token 0, an answer without a token."""


class NotApplicableError(LensbenchError):
    """A method cannot answer these questions at all. The reason goes into the run, and no score is written."""


def unknown_name(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """Make the error for a name that does not exist, with the nearest names that do.

    Args:
        kind: What the name is of, in the singular ("task", "inspector").
        given: The name as it was given.
        known: All names that would have been right.
        hint: A last sentence with the next step.

    Returns:
        The error, to be raised by the caller. Its message is one line.
    """
    names = sorted(set(known))
    folded = {name.casefold(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(given.casefold(), list(folded), n=3, cutoff=0.6)]
    parts = [f"unknown {kind} {given!r}"]
    if near:
        parts.append(f"did you mean {_either(near)}?")
    if not names:
        parts.append(f"there is no {kind} at all")
    elif len(names) <= _SHORT_LIST:
        parts.append(f"known: {', '.join(names)}")
    elif not near:
        parts.append(f"{len(names)} are known, such as {', '.join(names[:3])}")
    if hint:
        parts.append(hint)
    return UsageError("; ".join(parts))


def _either(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
