"""Whose knowledge is told: the target's facts, those of the model that reads it, or neither's?"""

from collections.abc import Iterator
from dataclasses import dataclass

from lensbench.calibration.trials import Trial
from lensbench.evaluation.config import twin_of
from lensbench.models.sources import facts_about, planted_facts, with_edit
from lensbench.results.provenance import shares
from lensbench.runs.run import Run


@dataclass(frozen=True)
class AnswerShares:
    """Whose facts a method's answers follow at a layer, on names of which target and twin were told different facts.

    Attributes:
        method: the inspector's name.
        verbalizer: who reads: `base` (told nothing), `target` (told the same), `twin` (otherwise), or a model by name.
        layer: that is read; None for a method that reads none.
        target: share of answers that are the target's facts.
        twin: share that are the twin's.
        neither: the rest.
        subjects: how many names.
    """

    method: str
    verbalizer: str
    layer: int | None
    target: float
    twin: float
    neither: float
    subjects: int


def readers(trial: Trial) -> dict[str, str]:
    """Return the models that read a target with a twin: role -> name. Empty where the implant has no twin."""
    twin = twin_of(trial.folder)
    if twin is None:
        return {}
    return {"base": trial.base, "target": trial.model, "twin": with_edit(trial.base, twin)}


def told(trial: Trial, verbalizer: str, run: Run) -> Iterator[AnswerShares]:
    """Read a run of a target with some verbalizer."""
    relation, roles = trial.relations[0], readers(trial)
    own, other = ({relation: facts_about(relation, planted_facts(roles[role]))} for role in ("target", "twin"))
    if not len(run.records):
        return  # no method reads a target with this verbalizer
    table = shares(run.records[run.records["relation"] == relation], own, other)
    for key, part in table.groupby(["inspector", "attempt"], sort=False):
        first = run.records[run.records["inspector"] == key[0]]["attempt"].iloc[0]
        if key[1] != first:
            continue
        wide = part.assign(layer=part["layer"].astype("float")).pivot_table(
            index="layer", columns="follows", values="share", dropna=False
        )
        for layer, row in wide.iterrows():
            yield AnswerShares(
                str(key[0]), verbalizer, None if layer != layer else int(layer),  # type: ignore[call-overload]
                float(row["target"]), float(row["verbalizer"]), float(row["neither"]), int(part["subjects"].iloc[0]),
            )  # fmt: skip
