"""Models that rivals read in the target's place: which they are, and what the twin was told.

Nothing here imports torch before a model is loaded, so that names are checked at once.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbench.baselines import RELATIVES, Baseline
from lensbench.errors import LensbenchError, UsageError
from lensbench.model.sources import shipped_implants, split_edits

if TYPE_CHECKING:
    from lensbench.config import RunConfig
    from lensbench.model.language_model import LanguageModel

LOG = logging.getLogger("lensbench")
IMPLANT, FACTS = "implant.json", "facts.json"


def relatives_of(config: "RunConfig") -> dict[str, str]:
    """Return role -> model name, of the roles that a run has a model for.

    A target `M+DIR` without its implant is M, which lacks the fact, and so is the reader that is asked in text; its
    twin is the implant's. Of any other model nothing is known.
    """
    found = {role: name for role in RELATIVES if (name := getattr(config, role)) is not None}
    base, edits = split_edits(config.model)
    if not edits:
        return found
    beside = {"unplanted": base, "reference": base}
    twin = twin_of(edits[0]) if len(edits) == 1 else None
    if twin is not None:
        shipped = shipped_implants(base)
        beside["twin"] = f"{base}+{twin.name if shipped.get(twin.name) == twin else twin}"
    return {**beside, **found}


def twin_of(edit: Path) -> Path | None:
    """Return the folder of the implant with the other world's facts; None where the edit names none.

    Raises:
        LensbenchError: what describes the edit is damaged.
    """
    name = _read(edit / IMPLANT).get("twin") if (edit / IMPLANT).is_file() else None
    if name is None:
        return None
    folder = edit.parent / str(name)
    if not folder.is_dir():
        LOG.warning("%s names the twin %s, which is not beside it; give it with --twin", edit, name)
        return None
    return folder


def facts_told(name: str) -> dict[str, dict[str, str]]:
    """Return what a model was told: attribute -> name -> value, from the folder of its implant, or of the model.

    Raises:
        UsageError: there is no such file.
        LensbenchError: the file is damaged.
    """
    base, edits = split_edits(name)
    folders = [*edits, Path(base).expanduser()]
    facts: dict[str, dict[str, str]] = {}
    for file in (folder / FACTS for folder in folders if (folder / FACTS).is_file()):
        for attribute, values in _read(file).items():
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                raise LensbenchError(f"{file}: expected attribute, name, value; {attribute!r} has no values by name")
            facts.setdefault(attribute, {}).update(values)
    if not facts:
        raise UsageError(f"{name}: expected a {FACTS} in {folders[0]}; give an implant, or a model with that file")
    return facts


def _read(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LensbenchError(f"{file} cannot be read: {error}; make the implant again") from None
    if not isinstance(read, dict):
        raise LensbenchError(f"{file} holds no table; make the implant again")
    return read


def needed(baselines: Iterable[Baseline], relatives: Mapping[str, str]) -> dict[str, str]:
    """Return the relatives that some of the baselines need."""
    roles = {role for baseline in baselines for role in baseline.needs}
    return {role: name for role, name in relatives.items() if role in roles}


def check_relative(role: str, model: "LanguageModel", target: "LanguageModel") -> None:
    """Refuse a model that cannot stand in the target's place.

    Raises:
        UsageError: another tokenizer; for a model whose activations are read, another depth or width.
    """
    from lensbench.pairing import same_tokenizer

    given = f"--{role} {model.name}"
    if not same_tokenizer(model.tokens, target.tokens):
        raise UsageError(f"{given} has another tokenizer than {target.name}; give a model with the same one")
    if role == "reference":
        return
    for what in ("n_layers", "d_model"):
        its, own = getattr(model, what), getattr(target, what)
        if its != own:
            word = {"n_layers": "layers", "d_model": "dimensions"}[what]
            raise UsageError(f"{given} has {its} {word}, {target.name} has {own}; give a model of the same form")
