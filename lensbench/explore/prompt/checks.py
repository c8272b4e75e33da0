"""What can be told to be wrong before a model is loaded. Nothing here imports torch."""

from lensbench.errors import UsageError
from lensbench.inspectors.catalog import check_inspector
from lensbench.utils.layer_spec import parse_layers

PATCHSCOPE = "patchscope"


def check_prompt_text(prompt: str) -> None:
    """Refuse a prompt without a word in it.

    Raises:
        UsageError: it has none.
    """
    if not prompt.strip():
        raise UsageError(f"the prompt {prompt!r} is empty; give a text, such as 'The capital of France is'")


def check_table(prompt: str, lens: str | None, layers: str, top: int) -> None:
    """Refuse what cannot be asked of a lens.

    Args:
        prompt: the text.
        lens: its name; None where it is there already.
        layers: as `--layers`.
        top: how many tokens a cell.

    Raises:
        UsageError: an empty prompt, an unknown lens, layers of another form, or no token to show.
    """
    check_prompt_text(prompt)
    if lens == PATCHSCOPE:
        raise UsageError("a patchscope describes one token in words: give --patchscope --token TOKEN, or another lens")
    if lens is not None:
        check_inspector(lens)
    parse_layers(layers, None)
    if top < 1:
        raise UsageError(f"top = {top}: expected 1 or more likeliest tokens")


def check_token(prompt: str, token: int | str) -> None:
    """Refuse a token that is neither a position nor in the prompt.

    Raises:
        UsageError: it is not.
    """
    if position_of(token) is None and (not str(token).strip() or str(token) not in prompt):
        raise UsageError(
            f"--token {str(token)!r}: expected the number of a token (1 is the second, -1 the last), or a word of the "
            "prompt"
        )


def position_of(token: int | str) -> int | None:
    """Read a token's number; None where it is a word."""
    if isinstance(token, int):
        return token
    digits = token.removeprefix("-")
    return int(token) if digits.isascii() and digits.isdigit() else None
