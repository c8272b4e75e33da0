"""What mkdocs adds to the pages of docs/: the commands, the stable names, and what links out of docs/ become.

Pages stay plain Markdown that a code host shows as well; what is generated cannot be out of date.
"""

import posixpath
import re
import tomllib
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer

COMMANDS, NAMES, TESTING = "<!-- commands -->", "<!-- stable names -->", "<!-- testing -->"
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Say under every page which version it describes: that of the checkout, which may not be the one installed."""
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text(encoding="utf-8"))
    config.copyright = f"lensbench {project['project']['version']}"
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill what a page leaves to be generated, and name the files that are no part of the site instead of linking."""
    for marker, lines in ((COMMANDS, command_reference), (NAMES, stable_names), (TESTING, testing_names)):
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(lines()))
    here = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(here, link[2]))
        if place.startswith("../"):
            return f"{link[1]} (`{place[3:]}`)"
        # On a code host a page is best known by its file's name, in the site by its title.
        there = files.get_file_from_path(place) if link[1] == link[2] else None
        return f"[{_title(there.content_string)}]({link[2]}{link[3] or ''})" if there else link[0]

    return _LINK.sub(inside, markdown)


def _title(markdown: str) -> str:
    found = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return found[1] if found else "?"


def command_reference() -> Iterator[str]:
    """Every command with its arguments and options, as `--help` tells them."""
    from lensbench.cli import app

    for name, command in _commands(typer.main.get_command(app)):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        usage = " ".join(_usage(one) for one in arguments)
        line = " ".join(part for part in ("lensbench", name, usage, "[OPTIONS]") if part)
        yield f"\n## {name}\n\n```\n{line}\n```\n\n{cleandoc(command.help or '')}\n"
        if arguments or options:
            yield "| option | meaning | default |\n|---|---|---|"
            yield from (_row(one) for one in (*arguments, *options))


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of a group by name, and those of the groups in it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        elif not command.hidden:
            yield f"{before}{name}", command


def _usage(argument: Any) -> str:
    many = "..." if argument.nargs == -1 else ""
    word = argument.name.upper() + many
    return word if argument.required else f"[{word}]"


def _row(parameter: Any) -> str:
    names = parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else [_usage(parameter)]
    shown = ", ".join(f"`{name}`" for name in names)
    meaning, _, said = (parameter.help or "").replace("|", r"\|").partition(" [default: ")
    default = "required" if parameter.required else said.removesuffix("]") or _default(parameter.default)
    return f"| {shown} | {meaning} | {default} |"


def _default(value: Any) -> str:
    plain = value is None or value is False or callable(value) or value in ((), [])
    return "" if plain else "on" if value is True else f"`{value}`"


def stable_names() -> Iterator[str]:
    """A documented entry for each stable name of lensbench, where it is defined."""
    import lensbench

    for name in lensbench.__all__:
        yield f"\n::: lensbench.{lensbench._HOMES[name]}.{name}\n    options:\n      heading: lensbench.{name}\n"


def testing_names() -> Iterator[str]:
    """A documented entry for each function of lensbench.testing, where it is defined."""
    from lensbench import testing

    for name in testing.__all__:
        home = getattr(getattr(testing, name), "__module__", "")
        if home.startswith("lensbench."):
            yield f"\n::: {home}.{name}\n    options:\n      heading: lensbench.testing.{name}\n"
