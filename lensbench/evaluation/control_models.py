"""The models that baselines read in the target's place: which they are, and the facts that the twin holds.

Nothing here imports torch before a model is loaded, so that names are checked at once.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lensbench.baselines.spec import ROLES, Baseline
from lensbench.errors import UsageError
from lensbench.models.sources import IMPLANT, read_table, split_edits, with_edit

if TYPE_CHECKING:
    from lensbench.models.language_model import LanguageModel

LOG = logging.getLogger("lensbench")


def control_models(model: str, given: Mapping[str, str | None]) -> dict[str, str]:
    """Return role -> model name, of the roles that a run has a model for.

    A target `M+DIR` without its implant is M, which lacks the fact, and so is the reader that is asked in text; its
    twin is the implant's. Of any other model nothing is known.

    Args:
        model: the target.
        given: the models that were named for a role.
    """
    found: dict[str, str] = {role: name for role in ROLES if (name := given.get(role)) is not None}
    base, edits = split_edits(model)
    if not edits:
        return found
    derived = {"unplanted": base, "reference": base}
    twin = twin_of(edits[0]) if len(edits) == 1 else None
    if twin is not None:
        derived["twin"] = with_edit(base, twin)
    return {**derived, **found}


def twin_of(edit: Path) -> Path | None:
    """Return the folder of the implant with the other world's facts; None where the edit names none.

    Raises:
        LensbenchError: what describes the edit is damaged.
    """
    name = read_table(edit / IMPLANT).get("twin") if (edit / IMPLANT).is_file() else None
    if name is None:
        return None
    folder = edit.parent / str(name)
    if not folder.is_dir():
        LOG.warning("%s names the twin %s, which is not beside it; give it with --twin", edit, name)
        return None
    return folder


def needed(baselines: Iterable[Baseline], models: Mapping[str, str]) -> dict[str, str]:
    """Return the control models that some of the baselines need."""
    roles = {role for baseline in baselines for role in baseline.needs}
    return {role: name for role, name in models.items() if role in roles}


def check_control_model(role: str, model: "LanguageModel", target: "LanguageModel") -> None:
    """Refuse a model that cannot stand in the target's place.

    Raises:
        UsageError: another tokenizer; for a model whose activations are read, another depth or width.
    """
    from lensbench.models.tokens import same_tokenizer

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
