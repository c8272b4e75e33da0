"""What a run on an implant says of a method: where it finds the fact, and whose facts its answers follow."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lensbench.calibration.trials import Trial
from lensbench.evaluation.control_models import twin_of
from lensbench.models.sources import facts_about, planted_facts, with_edit
from lensbench.results.arrays import FIXED, SELECTED
from lensbench.results.change_point import Emergence, emergence
from lensbench.results.provenance import shares
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summarise
from lensbench.results.verdicts import VERDICTS
from lensbench.runs.run import Run
from lensbench.tasks.personas import NEVER

PRIVILEGED = VERDICTS["target_specific"]
UNPLANTED = "unplanted"
QUESTION = "target_specific"
# What must be the same with the fact and without it, at layers that cannot hold it.
SAME = ("predicted", "predicted_corrected", "gold_log_prob", "gold_rank", "text")


@dataclass(frozen=True)
class TrialFinding:
    """What was found of one method on one implant, in one relation.

    Attributes:
        trial: name of the implant.
        kind: of the trial.
        method: the inspector's name.
        relation: what was asked.
        planted: whether these names have the fact that was asked for.
        layers: the first layers that can hold what was written.
        read: the layers that were read.
        differing: predictions at layers before the first of these that are not those without the fact.
        compared: how many of them were compared; 0 where the target is in another basis, so that all layers differ, and
            for methods that see more of the target than the layer that they are asked about.
        emergence: at which layer the difference to the unedited model begins.
        privileged: the layers with that verdict.
        best_layer: the layer of the largest gap.
        accuracy: there, corrected.
        unplanted: the same method on the unedited model there.
        gap: to the strongest rival there, with its limits.
        verdict: there.
        detectable: the smallest gap that this study would probably find there.
        local: whether the method sees nothing of the target but the layer's activation. One that runs the target, or
            reads parts of its blocks, may know the fact at any layer.
    """

    trial: str
    kind: str
    method: str
    relation: str
    planted: bool
    layers: tuple[int, ...]
    read: tuple[int, ...]
    differing: int
    compared: int
    emergence: Emergence
    privileged: tuple[int, ...]
    best_layer: int
    accuracy: float
    unplanted: float
    gap: tuple[float, float, float]
    verdict: str
    detectable: float
    local: bool = True

    @property
    def expected(self) -> int:
        """The layer at which the fact is first held: the last that was written."""
        return self.layers[-1]

    @property
    def too_early(self) -> bool:
        """Whether anything is claimed, or differs, where nothing can be."""
        return self.local and (self.differing > 0 or any(layer < self.layers[0] for layer in self.privileged))

    @property
    def found(self) -> bool:
        """Whether the fact is found where it can be."""
        return any(layer >= self.layers[0] for layer in self.privileged)


def findings(trial: Trial, run: Run, beyond: Collection[str] = ()) -> Iterator[TrialFinding]:
    """Read a run on an implant: one finding a method and relation.

    Args:
        trial: the implant.
        run: on it.
        beyond: methods that see more of the target than a layer's activation.
    """
    records, summary = run.records, summary_if_calibrated(run)
    for (method, relation), part in records.groupby(["inspector", "relation"], observed=True, sort=False):
        own, other = (part[part["baseline"] == name] for name in (NO_BASELINE, UNPLANTED))
        if own.empty or other.empty or own["layer"].isna().any():
            continue
        asked = summary[(summary["inspector"] == method) & (summary["relation"] == relation)]
        yield _finding(trial, asked, str(method), str(relation), _paired(own, other), local=method not in beyond)


def summary_if_calibrated(run: Run) -> pd.DataFrame:
    """Return the summary that a run would have if its methods had been calibrated: that is what is being found out."""
    return summarise(run.records, being_calibrated(run), run.crossed)


def being_calibrated(run: Run) -> SummarySettings:
    """Return the settings of a run's verdicts without the demand for a calibration."""
    return replace(run.settings, uncalibrated=frozenset())


def _paired(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """A method with and without the fact, paired by prediction."""
    keys = ["layer", "attempt", "item", "subject"]
    columns = [*keys, *SAME, "correct_corrected"]
    left, right = (frame[columns].astype(dict.fromkeys(("attempt", "item", "subject"), str)) for frame in (own, other))
    return left.merge(right, on=keys, suffixes=("", "_without"), validate="one_to_one")


def _finding(
    trial: Trial, summary: pd.DataFrame, method: str, relation: str, pairs: pd.DataFrame, *, local: bool
) -> TrialFinding:
    comparable = local and trial.kind != "rotated"
    early = pairs[pairs["layer"] < trial.layers[0]] if comparable else pairs.iloc[:0]
    first = pairs[pairs["attempt"] == pairs["attempt"].iloc[0]]
    gain = first.assign(gain=first["correct_corrected"] - first["correct_corrected_without"])
    wide = gain.pivot_table(index=["subject", "item"], columns="layer", values="gain", sort=True)
    subjects = wide.index.get_level_values("subject").to_numpy()
    rows = _rows(summary, method, relation)
    best = rows.sort_values("gap", ascending=False, kind="stable").iloc[0]
    unplanted = summary[(summary["baseline"] == UNPLANTED) & (summary["layer"] == best["layer"])]
    return TrialFinding(
        trial=trial.name,
        kind=trial.kind,
        method=method,
        relation=relation,
        planted=not relation.endswith(NEVER) and trial.kind != "sham",
        layers=trial.layers,
        read=tuple(int(layer) for layer in wide.columns),
        differing=int(_differs(early).sum()),
        compared=len(early),
        emergence=emergence(wide.to_numpy(dtype=np.float64), subjects, [int(layer) for layer in wide.columns]),
        privileged=judged(summary, method, relation),
        best_layer=int(best["layer"]),
        accuracy=float(best["accuracy_corrected"]),
        unplanted=float(unplanted["accuracy_corrected"].iloc[0]),
        gap=(float(best["gap"]), float(best["gap_low"]), float(best["gap_high"])),
        verdict=str(best["verdict"]),
        detectable=float(best["detectable_gap"]),
        local=local,
    )


def _differs(pairs: pd.DataFrame) -> pd.Series:
    different = pd.Series(data=False, index=pairs.index)
    for name in SAME:
        one, other = pairs[name], pairs[f"{name}_without"]
        neither = one.isna() & other.isna()
        different |= ~neither & (one.astype(object) != other.astype(object))
    return different


def _rows(summary: pd.DataFrame, method: str, relation: str) -> pd.DataFrame:
    """The target-specific rows of a method: of its default attempt, or, where it has none, of the selected."""
    rows = summary[
        (summary["inspector"] == method) & (summary["relation"] == relation) & (summary["baseline"] == NO_BASELINE)
        & (summary["question"] == QUESTION)
    ]  # fmt: skip
    fixed = rows[rows["rule"] == FIXED]
    return fixed if len(fixed) else rows[rows["rule"] == SELECTED]


def judged(summary: pd.DataFrame, method: str, relation: str) -> tuple[int, ...]:
    """Return the layers at which a method is called privileged."""
    rows = _rows(summary, method, relation)
    return tuple(int(layer) for layer in rows[rows["verdict"] == PRIVILEGED]["layer"])


@dataclass(frozen=True)
class AnswerShares:
    """Whose facts a method's answers follow at a layer, on names for which target and twin hold different facts.

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


def verbalizers_of(trial: Trial) -> dict[str, str]:
    """Return the models that read a target with a twin: role -> name. Empty where the implant has no twin."""
    twin = twin_of(trial.folder)
    if twin is None:
        return {}
    return {"base": trial.base, "target": trial.model, "twin": with_edit(trial.base, twin)}


def answer_shares(trial: Trial, verbalizer: str, run: Run) -> Iterator[AnswerShares]:
    """Read a run of a target with some verbalizer."""
    relation, roles = trial.relations[0], verbalizers_of(trial)
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
