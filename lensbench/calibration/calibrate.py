"""A calibration from beginning to end, its result, and what of it is kept for later runs."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lensbench.calibration.cheats import CHEATS, Cheat, catch, praised
from lensbench.calibration.false_alarms import Alarms, Refitting, StandIn, permuted, stand_ins
from lensbench.calibration.findings import (
    AnswerShares,
    TrialFinding,
    answer_shares,
    findings,
    summary_if_calibrated,
    verbalizers_of,
)
from lensbench.calibration.trials import Trial, find_trials, of_kind
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig, check_config
from lensbench.evaluation.evaluate import run_config
from lensbench.evaluation.journal import hold_folder
from lensbench.evaluation.plan import Make, make_inspectors, method_version
from lensbench.inspectors.catalog import check_inspector
from lensbench.models.loading import Loading, count_layers
from lensbench.models.sources import resolve
from lensbench.results.calibrations import Calibrated, keep_calibration
from lensbench.results.records import without_nan, write_json_atomic
from lensbench.runs.run import Run
from lensbench.testing import conformance
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")
RESULT = "calibration.json"
FORMAT = 1
# Who reads these knows of the target more than the residual of the layer that is asked about.
BEYOND_THE_LAYER = frozenset({"target", "components"})


@dataclass(frozen=True)
class Caught:
    """What became of a method that cheats.

    Attributes:
        name: the cheat's.
        how: it cheats.
        expected: what should catch it.
        by: what did, and what each found.
        praised: verdicts that speak for it.
    """

    name: str
    how: str
    expected: str
    by: dict[str, str]
    praised: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether it got through: nothing caught it, or it was called privileged."""
        return self.expected not in self.by or "target_specific" in self.praised


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        model: in which facts were planted, and which reads them.
        versions: of each method: its name -> a digest of its code, its settings and all that its predictions depend on.
        findings: one a method, implant and relation.
        alarms: on permuted facts.
        stand_ins: models without the fact, judged as if they were the target.
        whose: whose facts the answers follow, read by the base model, by the target and by its twin.
        cheats: what became of them.
        failed_checks: of each method that fails any of `lensbench.testing`, which: check -> what it found.
        limit: of items a relation.
    """

    model: str
    versions: dict[str, str]
    findings: tuple[TrialFinding, ...]
    alarms: tuple[Alarms, ...] = ()
    stand_ins: tuple[StandIn, ...] = ()
    whose: tuple[AnswerShares, ...] = ()
    cheats: tuple[Caught, ...] = ()
    failed_checks: dict[str, dict[str, str]] = field(default_factory=dict)
    limit: int | None = None

    def select(self, method: str, *kinds: str, planted: bool = True) -> list[TrialFinding]:
        """Return what was found of a method on implants of these kinds."""
        return [one for one in self.findings if one.method == method and one.kind in kinds and one.planted == planted]

    def power(self, method: str) -> tuple[int, int]:
        """Return on how many plain implants a method found the fact where it can be, and on how many it was tried."""
        tried = self.select(method, "plain")
        return sum(one.found for one in tried), len(tried)

    def problems(self) -> list[str]:
        """Return what speaks against the instrument: something claimed that cannot be, or a cheat that passed."""
        early = [
            f"{one.method} on {one.trial}, {one.relation}: {one.differing} predictions differ before layer "
            f"{one.layers[0]}, privileged at {list(one.privileged)}"
            for one in self.findings
            if one.too_early
        ]
        absent = [
            f"{one.method} on {one.trial}, {one.relation}: privileged at {list(one.privileged)}, and nothing is planted"
            for one in self.findings
            if not one.planted and one.privileged
        ]
        absent += [
            f"{one.method} on {one.trial}, {one.model} in the target's place: privileged at {list(one.privileged)}"
            for one in self.stand_ins
            if one.privileged
        ]
        passed = [f"the cheat {one.name} was not caught by {one.expected}" for one in self.cheats if one.passed]
        failed = [
            f"{method} fails {check} ({what}): its verdicts cannot be trusted"
            for method, checks in self.failed_checks.items()
            for check, what in checks.items()
        ]
        return [*failed, *early, *absent, *passed]


@dataclass(frozen=True)
class CalibrationSettings:
    """What is to be calibrated, and how.

    Attributes:
        model: in which facts were planted.
        inspectors: the methods.
        implants: names of shipped ones, or folders; None for all that ship, or with `quick` for a few.
        quick: few implants, few permutations.
        cheats: whether the cheats are tried.
        limit: of items a relation.
        permutations: of the facts; 0 for none.
        readers: models that read a target with a twin too, besides those of its own kind; of another architecture, for
            methods that map activations.
        settings: other settings of the runs: device, dtype, parameters, ...
    """

    model: str = "smollm2-135m"
    inspectors: tuple[str, ...] = ("patchscope", "logit_lens", "linear_probe")
    implants: tuple[str, ...] | None = None
    quick: bool = False
    cheats: bool = True
    limit: int | None = 64
    permutations: int = 1000
    readers: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def calibrate(settings: CalibrationSettings, out: Path, progress: Progress = silent) -> Calibration:
    """Try methods on planted facts, on facts that are not there, and the checks on methods that cheat.

    Each implant is a run in `out/runs/`; what is done is not done again. The result is written to `out`, and kept for
    the reports of these very versions of the methods.

    Raises:
        UsageError: no such implant or method, found before a model is loaded.
        LensbenchError: a cell of a run failed.
    """
    trials = find_trials(settings.model, settings.implants, settings.quick)
    if not (plain := of_kind(trials, "plain")):
        raise UsageError("a calibration needs a plain implant, to measure power on; name one with --implants")
    for name in settings.inspectors:
        check_inspector(name)
    for reader in settings.readers:
        resolve(reader, offline=settings.settings.get("offline", False))
    runs = _CalibrationRuns(settings, out, count_layers(resolve(settings.model)), progress)
    configs = [runs.config(trial, out / "runs" / trial.name, inspectors=settings.inspectors) for trial in trials]
    for config in configs:
        check_config(config)
    makes = make_inspectors(configs[0])
    Loading(configs[0].device, configs[0].dtype).torch_device()
    with hold_folder(configs[0].out or out):
        pass  # it can be written to
    failed = {name: checks for name, make in makes.items() if (checks := _failed_checks(make))}
    beyond = [name for name, make in makes.items() if make().reads & BEYOND_THE_LAYER]
    found: list[TrialFinding] = []
    alarms: list[Alarms] = []
    others: list[StandIn] = []
    for trial, config in zip(trials, configs, strict=True):
        LOG.info("%s: %s", trial.name, ", ".join(trial.relations))
        run = runs.run(config)
        found += findings(trial, run, beyond)
        if trial.kind == "plain":
            others += stand_ins(trial.name, run, trial.relations[0])
        if settings.permutations and trial is plain[0]:
            refits = {
                name: Refitting(config, given)
                for (name, make), given in zip(makes.items(), config.inspectors, strict=True)
                if make().learns_from == "labels"
            }
            alarms += permuted(trial.name, run, trial.relations[0], settings.permutations, refits)
    result = Calibration(
        model=settings.model, versions={name: method_version(make()) for name, make in makes.items()},
        findings=tuple(found), alarms=tuple(alarms), stand_ins=tuple(others), whose=tuple(runs.whose(plain[0])),
        cheats=tuple(runs.cheats(plain[0])) if settings.cheats else (), failed_checks=failed, limit=settings.limit,
    )  # fmt: skip
    write_result(result, out)
    keep_result(result)
    return result


def _failed_checks(make: Make) -> dict[str, str]:
    """Run a method through the checks of `lensbench.testing`; return what those found that it fails."""
    return {check: what for check, what in conformance(make).items() if what is not None}


@dataclass(frozen=True)
class _CalibrationRuns:
    """The runs of a calibration."""

    settings: CalibrationSettings
    out: Path
    n_layers: int
    progress: Progress

    def config(self, trial: Trial, out: Path, **settings: Any) -> RunConfig:
        """Return the configuration of a run on an implant."""
        limit = self.settings.limit and self.settings.limit * len(trial.relations)
        return trial.config({"limit": limit, **self.settings.settings, **settings, "out": out}, self.n_layers)

    def run(self, config: RunConfig) -> Run:
        """Make a run. One with failed cells is refused: what is missing would pass for something not found."""
        run = run_config(config, self.progress)
        for error in run.failed.values():
            raise UsageError(f"a cell of {run.path} failed: {error.splitlines()[0]}; fix it and calibrate again")
        return run

    def whose(self, trial: Trial) -> Iterator[AnswerShares]:
        """Read a target with a twin by the base model, the target itself, the twin and others; without baselines."""
        own = verbalizers_of(trial)
        others = {Path(name).name: name for name in self.settings.readers if own}
        for role, name in (own | others).items():
            settings = {"inspectors": self.settings.inspectors, "baselines": "none", "verbalizer": name}
            yield from answer_shares(trial, role, self.run(self.config(trial, self.out / "whose" / role, **settings)))

    def cheats(self, trial: Trial) -> Iterable[Caught]:
        """Run the cheats that no check catches on one implant, and all of them through the checks."""
        judged = [cheat for cheat in CHEATS if not cheat.by_check]
        names = tuple(f"{cheat.make.__module__}:{cheat.make.__name__}" for cheat in judged)
        run = self.run(self.config(trial, self.out / "cheats", inspectors=names))
        return [_caught(cheat, run) for cheat in CHEATS]


def _caught(cheat: Cheat, run: Run) -> Caught:
    summary = None if cheat.by_check else summary_if_calibrated(run)
    by = catch(cheat, summary)
    return Caught(cheat.name, cheat.how, cheat.caught_by, by, {} if summary is None else praised(summary, cheat.name))


def write_result(result: Calibration, out: Path) -> None:
    """Write the result as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out / RESULT, without_nan({"format": FORMAT, **asdict(result), "problems": result.problems()}))


def keep_result(result: Calibration) -> None:
    """Keep what was found of each method."""
    for method, version in result.versions.items():
        found, tried = result.power(method)
        mine = [one for one in result.findings if one.method == method]
        plain = [one for one in mine if one.kind == "plain" and one.planted]
        keep_calibration(
            Calibrated(
                version=version,
                model=result.model,
                found=found,
                tried=tried,
                emergence_right=sum(one.emergence.contains(one.expected) for one in plain),
                too_early=sum(one.too_early for one in mine),
                false_alarms=sum(bool(one.privileged) for one in mine if not one.planted),
                not_planted=sum(not one.planted for one in mine),
                failed_checks=tuple(result.failed_checks.get(method, ())),
                limit=result.limit,
            )
        )
