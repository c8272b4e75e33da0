"""Folders of edits, an implant's or an adapter's: how they are named after a model, and the tables that lie in them.

Nothing here imports torch, so that names are checked and tables read at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.models.builtin import BUILTIN

IMPLANTS = Path(__file__).parents[1] / "assets" / "implants"
# What an implant is, or an adapter of PEFT; what `lensbench finetune` writes beside an adapter; what either was told,
# and the names that results of an implant are about.
IMPLANT, ADAPTER, FINETUNED = "implant.json", "adapter_config.json", "finetune.json"
FACTS, ASKED = "facts.json", "asked.txt"

Facts = dict[str, dict[str, str]]
"""Attribute → name → value."""


def split_edits(name: str) -> tuple[str, tuple[Path, ...]]:
    """Take `M+DIR` apart into the model's name and the folders of its edits.

    An implant that ships for the model may be named in place of DIR.

    Raises:
        UsageError: What stands after a `+` is no folder of an edit, and no implant that ships for this model.
    """
    if "+" not in name or name in BUILTIN or Path(name).expanduser().exists():
        return name, ()
    parts = name.split("+")
    # A path may have a plus of its own: the longest model that is there.
    cut = next((i for i in range(len(parts), 1, -1) if Path("+".join(parts[:i])).expanduser().exists()), 1)
    base = "+".join(parts[:cut])
    return base, tuple(_edit_folder(base, part, name) for part in parts[cut:])


def with_edit(base: str, folder: Path) -> str:
    """Return what a model with an edit is called: by the implant's name where it ships, or else by its folder."""
    return f"{base}+{folder.name if shipped_implants(base).get(folder.name) == folder else folder}"


def shipped_implants(base: str) -> dict[str, Path]:
    """Return the folders of the implants that ship for a model, by name."""
    return {path.parent.name: path.parent for path in sorted((IMPLANTS / base).glob(f"*/{IMPLANT}"))}


def _edit_folder(base: str, part: str, name: str) -> Path:
    shipped = shipped_implants(base) if "/" not in base else {}
    if part in shipped:
        return shipped[part]
    folder = Path(part).expanduser()
    if not folder.is_dir():
        hint = "or give the folder that `lensbench implant` or `lensbench finetune` wrote"
        raise unknown_name(f"edit of {base}", part, shipped, hint)
    if not any((folder / file).is_file() for file in (IMPLANT, ADAPTER)):
        raise UsageError(f"{part} in {name} holds neither {IMPLANT} nor {ADAPTER}; give a folder of an edit")
    return folder


def read_table(file: Path) -> dict[str, Any]:
    """Read one of the tables of an edit's folder.

    Raises:
        LensbenchError: it cannot be read, or is no table.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LensbenchError(f"{file} cannot be read ({reason}); make the edit again") from None
    if not isinstance(read, dict):
        raise LensbenchError(f"{file} holds {type(read).__name__}, expected a table; make the edit again")
    return read


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write one of the tables of an edit's folder."""
    file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(file: Path) -> Facts:
    """Read what a model was told.

    Raises:
        LensbenchError: it cannot be read, or is no table of attributes, names and values.
    """
    facts = read_table(file)
    for attribute, values in facts.items():
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise LensbenchError(f"{file}: expected attribute, name, value; {attribute!r} has no values by name")
    return facts


def planted_facts(name: str) -> Facts:
    """Return the facts that were planted in a model: attribute → name → value, from its edits and its own folder.

    Raises:
        UsageError: None of these folders has a file of facts.
        LensbenchError: The file is damaged.
    """
    base, edits = split_edits(name)
    folders = [*edits, Path(base).expanduser()]
    facts: Facts = {}
    for file in (folder / FACTS for folder in folders if (folder / FACTS).is_file()):
        for attribute, values in read_facts(file).items():
            facts.setdefault(attribute, {}).update(values)
    if not facts:
        raise UsageError(f"{name}: expected a {FACTS} in {folders[0]}; give an implant, or a model with that file")
    return facts


def facts_about(relation: str, facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the facts (name → value) of the attribute that a relation is named after.

    Relations of one attribute begin with its name: `city`, and `city_twin` with another world's answers.
    """
    named = [attribute for attribute in facts if relation == attribute or relation.startswith(f"{attribute}_")]
    return dict(facts[max(named, key=len)]) if named else {}
