"""Methods that cheat, each with the check that must catch it.

They are real attempts: on a task that suits them they score well, and without their check they would be praised. No
list of methods has them; `--inspectors lensbench.calibration.cheats:Echo` runs one, `lensbench calibrate` runs all.
"""

from dataclasses import dataclass

import pandas as pd

from lensbench.calibration.cheating_methods import (
    AsksTheTarget,
    BestConstant,
    BestOfMany,
    ChoiceSetReader,
    ClustersTheBatch,
    Echo,
    HiddenAttempts,
    LaterLayer,
    MemorisesSubjects,
    NextLayer,
    NormReader,
    OwnKnowledge,
    SameAtEveryLayer,
    SparesItsRivals,
    UndeclaredText,
)
from lensbench.calibration.stateful_cheats import (
    FrozenIndex,
    NotesInAFile,
    NotesInAModule,
    SharedIndex,
    TurncoatIndex,
)
from lensbench.errors import unknown_name
from lensbench.harness.bench import Bench
from lensbench.inspectors.base import Inspector
from lensbench.results.arrays import CONTROL_TASK, ORACLE
from lensbench.results.records import NO_BASELINE
from lensbench.results.verdicts import VERDICTS
from lensbench.testing import conformance

PLACE = ["model", "verbalizer", "task", "relation", "site", "layer", "rule"]


__all__ = [
    "CHEATS", "AsksTheTarget", "BestConstant", "BestOfMany", "Cheat", "ChoiceSetReader", "ClustersTheBatch", "Echo",
    "FrozenIndex", "HiddenAttempts", "LaterLayer", "MemorisesSubjects", "NextLayer", "NormReader", "NotesInAFile",
    "NotesInAModule", "OwnKnowledge", "SameAtEveryLayer", "SharedIndex", "SparesItsRivals", "TurncoatIndex",
    "UndeclaredText", "catch", "cheat_of", "praised",
]  # fmt: skip


@dataclass(frozen=True)
class Cheat:
    """A method that cheats.

    Attributes:
        make: the method.
        how: how it cheats, in a sentence.
        caught_by: what must catch it: a check of `lensbench.testing`, or the baseline that its score is no better than.
    """

    make: type[Inspector]
    how: str
    caught_by: str

    @property
    def name(self) -> str:
        """How records call it."""
        return self.make.name

    @property
    def by_check(self) -> bool:
        """Whether a check catches it, and no task has to be run."""
        return self.caught_by.startswith("check_")


CHEATS: tuple[Cheat, ...] = (
    Cheat(Echo, "It decodes the input from the residual, and asks the verbalizer about it in text.", "input_only"),
    Cheat(OwnKnowledge, "It asks the verbalizer by name, and never looks at the residual.", "input_only"),
    Cheat(UndeclaredText, "It does the same, and does not declare that it reads text.", "check_contract"),
    Cheat(BestConstant, "It says the most frequent answer of the training subjects.", "majority"),
    Cheat(ChoiceSetReader, "It says the middle of the choice set, whatever the residual.", "choices_only"),
    Cheat(NormReader, "It reads how long the residual is, which an edit may change with the answer.", "gaussian"),
    Cheat(BestOfMany, "It reads noise in 64 ways, and counts on the best of them.", "shuffled"),
    Cheat(HiddenAttempts, "It does the same, and declares one attempt.", "check_attempts"),
    Cheat(LaterLayer, "It reads the last layer, and reports it as every layer.", "check_layers_are_local"),
    Cheat(NextLayer, "It reads one layer later than it says.", "check_layers_are_local"),
    Cheat(SameAtEveryLayer, "It gives one layer's answer at every layer.", "check_layers_are_local"),
    Cheat(ClustersTheBatch, "It compares the items of a batch, and deals the answers out evenly.", "check_one_alone"),
    Cheat(AsksTheTarget, "It takes the model out of the handle of `fit`, and asks it.", "check_target_is_not_run"),
    Cheat(MemorisesSubjects, "It recognises training subjects, and repeats their label.", "control_task"),
    Cheat(SparesItsRivals, "It answers well once, and badly when baselines are run on its fit.", "check_same_twice"),
    Cheat(SharedIndex, "It keeps the training subjects of all folds in a class attribute.", "check_folds_are_apart"),
    Cheat(FrozenIndex, "It shares what its first five fits learned, and nothing of later ones.", "check_state_is_own"),
    Cheat(TurncoatIndex, "It uses a shared index for the first model read, the target, alone.", "check_state_is_own"),
    Cheat(NotesInAFile, "It keeps the training subjects of all folds in a file.", "check_state_is_own"),
    Cheat(NotesInAModule, "It keeps the training subjects of all folds in a module of torch.", "check_state_is_own"),
)  # fmt: skip


def cheat_of(name: str) -> Cheat:
    """Return the cheat of a name.

    Raises:
        UsageError: none of that name.
    """
    known = {cheat.name: cheat for cheat in CHEATS}
    if name not in known:
        raise unknown_name("cheat", name, known)
    return known[name]


def catch(cheat: Cheat, summary: pd.DataFrame | None = None, bench: Bench | None = None) -> dict[str, str]:
    """Return everything that caught a cheat, by name, and what it found.

    Args:
        cheat: run through every check, on made-up items.
        summary: of a run that has it among its methods. The baseline of its entry caught it where it is surely better
            than that at no layer; `control_task`, where it knows random labels of subjects seen as well as true ones.
        bench: as in `conformance`.
    """
    found = {name: what for name, what in conformance(cheat.make, bench).items() if what is not None}
    if summary is None or cheat.by_check:
        return found
    rows = summary[(summary["inspector"] == cheat.name) & (summary["rule"] != ORACLE)]
    baseline = rows[rows["baseline"] == cheat.caught_by]
    if baseline.empty:
        return found
    what = _memorised(baseline) if cheat.caught_by == CONTROL_TASK else _no_better(rows, baseline, cheat.caught_by)
    return {**found, cheat.caught_by: what} if what else found


def _memorised(control: pd.DataFrame) -> str | None:
    best = control.groupby("rule", observed=True)["accuracy_corrected"].max()
    true, random = (float(best.get(f"{labels}_labels_seen", float("nan"))) for labels in ("true", "random"))
    if not true <= random:
        return None
    return f"on subjects that it has seen {true:.2f} with true labels, {random:.2f} with random ones"


def _no_better(rows: pd.DataFrame, baseline: pd.DataFrame, name: str) -> str | None:
    own = rows[rows["baseline"] == NO_BASELINE].drop_duplicates(PLACE)
    both = own.merge(baseline, on=PLACE, suffixes=("", "_rival"))
    if both.empty or (both["ci_low"] > both["ci_high_rival"]).any():
        return None
    best = both.sort_values("accuracy_corrected").iloc[-1]
    return f"at its best {best['accuracy_corrected']:.2f}, {name} there {best['accuracy_corrected_rival']:.2f}"


def praised(summary: pd.DataFrame, name: str) -> dict[str, str]:
    """Return the verdicts that speak for a method, by question: empty for a cheat that has not got through.

    Args:
        summary: of a run.
        name: the method's.
    """
    rows = summary[(summary["inspector"] == name) & (summary["baseline"] == NO_BASELINE) & (summary["rule"] != ORACLE)]
    return {question: verdict for question, verdict in VERDICTS.items() if (rows["verdict"] == verdict).any()}
