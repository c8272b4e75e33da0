"""The models that baselines read in the target's place: without its facts, with other facts, and a reader of text."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lensbench.baselines.spec import ROLES, Baseline
from lensbench.errors import UsageError
from lensbench.evaluation.given import GivenModel, edits_of, name_of
from lensbench.models.sources import IMPLANT, check_model_name, planted_facts, read_table, with_edit

LOG = logging.getLogger("lensbench")


def check_control_models(
    models: Mapping[str, GivenModel], baselines: Mapping[str, Baseline], *, named: Collection[str], offline: bool
) -> None:
    """Check the names of the models that baselines need.

    Args:
        models: role -> model.
        baselines: by name.
        named: those that were named one by one, of which none may be left out.
        offline: whether the Hub may not be asked.

    Raises:
        UsageError: a name that cannot be a model, a twin of which nothing is known, or a baseline that was named and
            has no model.
    """
    for role, model in needed(baselines.values(), models).items():
        if isinstance(model, str):
            check_model_name(model, offline=offline)
        if role == "twin":
            planted_facts(name_of(model))
    for baseline in (baselines[name] for name in named):
        for role in baseline.needs:
            if role not in models:
                raise UsageError(f"baseline {baseline.name} needs a model to read: name one with --{role}")


def control_models(model: GivenModel, given: Mapping[str, GivenModel | None]) -> dict[str, GivenModel]:
    """Return role -> model, of the roles that a run has a model for.

    A target `M+DIR` without its implant is M, which lacks the fact, and so is the reader that is asked in text; its
    twin is the implant's. Of any other model nothing is known.

    Args:
        model: the target.
        given: the models that were given for a role.
    """
    found: dict[str, GivenModel] = {role: one for role in ROLES if (one := given.get(role)) is not None}
    base, edits = edits_of(model)
    if not edits:
        return found
    derived: dict[str, GivenModel] = {"unplanted": base, "reference": base}
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
        LOG.warning("%s names the twin %s, which is not in the same folder; give it with --twin", edit, name)
        return None
    return folder


def needed(baselines: Iterable[Baseline], models: Mapping[str, GivenModel]) -> dict[str, GivenModel]:
    """Return the control models that some of the baselines need."""
    roles = {role for baseline in baselines for role in baseline.needs}
    return {role: model for role, model in models.items() if role in roles}
