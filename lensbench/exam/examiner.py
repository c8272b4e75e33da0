"""An evaluation in which recorders take the methods' place."""

import secrets
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.plan import Cell, CellResult, Job, Make, Place, check_job
from lensbench.evaluation.runner import Runner
from lensbench.evaluation.tables import CellTables
from lensbench.exam.captured import Capture, CapturedResiduals, require_one_vector, with_capture
from lensbench.exam.composing import Composer
from lensbench.exam.key import OutcomeKey, RelationKey
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import Outcome
from lensbench.harness.recording import NUMBER, LearningRecorder, Recorder, Recording, numbers_of, was_recorded
from lensbench.results.records import NO_BASELINE
from lensbench.tasks import N_FOLDS
from lensbench.utils.layer_spec import parse_layers

TAUGHT = (3, 4)
"""The folds whose subjects are in the training sets, where an exam has some; the other subjects are asked about."""


@dataclass(frozen=True)
class ExamSettings:
    """What an exam asks.

    Attributes:
        config: model, tasks, layers and so on, as of an evaluation; its methods are not used.
        training: whether the paper has labelled activations of other subjects, for methods that learn labels.
        text: whether a method may read the source texts.
        seed: of everything random; None draws one that nobody knows.
        capture: activations of a model that does not run here; that of the configuration then only reads texts.
    """

    config: RunConfig
    training: bool = False
    text: bool = False
    seed: str | None = None
    capture: Capture | None = None

    def __post_init__(self) -> None:
        require_one_vector(self.config)
        if self.config.whole_answers:
            raise UsageError("an exam cannot score whole answers; leave out whole_answers")

    def seeded(self) -> "ExamSettings":
        """Return the settings with a seed, drawn now where there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.token_hex(16))

    def makes(self, recording: Recording) -> dict[str, Make]:
        """Return the recorders, by name."""
        kinds = (Recorder, LearningRecorder) if self.training else (Recorder,)
        return {kind.name: partial(kind, recording, self.text) for kind in kinds}


class Examiner(Runner):
    """Runs an evaluation with recorders, and keeps what came of each cell.

    Args:
        job: what is asked.
        settings: of the exam.
        recording: where the recorders write.

    Attributes:
        outcomes: cell file → its benches and outcomes.
    """

    def __init__(self, job: Job, settings: ExamSettings, recording: Recording) -> None:
        self._taught = settings.training
        self._capture = settings.capture
        self._recording = recording
        self.outcomes: dict[str, list[tuple[Bench, Outcome]]] = defaultdict(list)
        super().__init__(job, settings.makes(recording))
        if self._capture is not None:
            about = self._capture.about
            self._tables = replace(self._tables, model=about.model)
            named = {"model": about.model, "model_fingerprint": self._capture.fingerprint, "dtype": about.dtype}
            self.plan = replace(self.plan, setting={**self.plan.setting, **named})

    def _load(self, job: Job) -> RunContext:
        context = super()._load(job)
        return context if self._capture is None else with_capture(context, self._capture)

    def _prepare(self, job: Job, dropped: dict[str, dict[str, str]]) -> dict[Place, list[Bench]]:
        benches = super()._prepare(job, dropped)
        for (task, site), group in benches.items():
            for bench in group:
                if not bench.relation.inspection:
                    raise UsageError(
                        f"task {task}, {bench.relation.name}, at {site} asks for the model's own next token, which is "
                        "no question for an exam; give a task with questions"
                    )
                if self._capture is not None:
                    learn_places(bench)
            if self._taught:
                benches[task, site] = [split(bench) for bench in group]
        return benches

    @property
    def precision(self) -> torch.dtype:
        """The precision of the real activations."""
        found = self.context.model.dtype if self._capture is None else self._capture.precision
        return found if found in (torch.bfloat16, torch.float16) else torch.float32

    def known(self, task: str, bench: Bench) -> dict[str, bool] | None:
        """Return what the target knows; of one that does not run here nothing is known."""
        return super().known(task, bench) if self._capture is None else None

    def _shares(self, cell: Cell) -> dict[str, dict[str, Any]]:
        return super()._shares(cell) if self._capture is None else {}

    def work(self, cell: Cell) -> CellResult:
        """Score a cell, and note where it reads.

        Raises:
            LensbenchError: it failed, or its baseline does more with a method's answers than select and join them.
        """
        self._recording.site = cell.site
        before = self._recording.calls
        found = super().work(cell)
        scores = [outcome.scores for _, outcome in self.outcomes[cell.file]]
        if self._recording.calls > before and scores and not any(NUMBER in one.attempts for one in scores):
            raise LensbenchError(f"{cell.baseline} changes a method's answers, which an exam cannot do; leave it out")
        if found.entry["status"] == "failed":
            raise LensbenchError(f"the exam cannot be made: {cell.file} failed: {found.entry['error'].splitlines()[0]}")
        return found

    def tables(self, cell: Cell, bench: Bench, outcome: Outcome) -> CellTables:
        """Keep an outcome; return its tables.

        Raises:
            LensbenchError: the baseline asks for other answers than the items'.
        """
        gold = {item.id: item.answer for item in bench.items}
        if any(gold.get(item.id) != item.answer for item in outcome.items):
            raise LensbenchError(f"{cell.baseline} asks for other answers, which an exam cannot do; leave it out")
        self.outcomes[cell.file].append((bench, outcome))
        return super().tables(cell, bench, outcome)

    def asked(self) -> dict[str, RelationKey]:
        """Return what is asked, by task, site and relation."""
        found = {}
        for (task, site), group in self.benches.items():
            for bench in group:
                name = bench.relation.name
                known = self.known(task, bench)
                items = {item.id: item for item in bench.items}
                found[f"{task}/{site}/{name}"] = RelationKey(bench.relation, items, known)
        return found


def split(bench: Bench) -> Bench:
    """Return a bench that asks about the subjects of some folds, and teaches those of the others.

    Raises:
        UsageError: nobody is left to ask about.
    """
    items = tuple(item for item in bench.items if item.fold not in TAUGHT)
    if len({item.fold for item in items}) < N_FOLDS - len(TAUGHT):
        raise UsageError(
            f"{bench.relation.name}: too few subjects to ask about some and teach others; ask without --training"
        )
    return replace(bench, items=items, train_items=tuple(one for one in bench.train_items if one.fold in TAUGHT))


def learn_places(bench: Bench) -> None:
    """Note where the items of a bench were captured.

    Raises:
        LensbenchError: one was not.
    """
    kept = bench.context.residuals
    assert isinstance(kept, CapturedResiduals)
    kept.learn([*bench.items, *bench.train_items])


def job_of(settings: ExamSettings) -> Job:
    """Look up all names, with layer 0 among the layers: if a baseline alone were asked it, its rows would tell.

    Raises:
        UsageError: settings that do not fit.
    """
    config = settings.config
    if settings.capture is not None:
        config = config.model_copy(
            update={"layers": "0"}
        )  # of the model that reads texts; all that was captured is asked
    elif 0 not in parse_layers(config.layers, None):
        config = config.model_copy(update={"layers": f"0,{config.layers}"})
    return check_job(config)


class Answered(NamedTuple):
    """An outcome that is made of answers, and the row of each of its layers and items."""

    bench: Bench
    outcome: Outcome
    rows: Int[np.ndarray, "layer item"]

    def part(self) -> OutcomeKey:
        """Return what the key says of it."""
        outcome = self.outcome
        return OutcomeKey(
            self.bench.relation.name, outcome.layers, tuple(item.id for item in outcome.items), outcome.zero_shot,
            outcome.credited_as_chance, outcome.exchangeable,
        )  # fmt: skip


def place_rows(composer: Composer, examiner: Examiner) -> dict[str, list[Answered]]:
    """Give every answer that an examiner's outcomes need a row; return them by cell."""
    found: dict[str, list[Answered]] = {}
    # Real rows come first: decoys that are the same activation share theirs.
    for cell in sorted(examiner.plan.cells, key=lambda cell: cell.baseline != NO_BASELINE):
        found[cell.file] = []
        for bench, outcome in examiner.outcomes[cell.file]:
            if not was_recorded(outcome.scores):
                continue
            numbers = numbers_of(outcome.scores, f"the baseline {cell.baseline}")
            rows = np.empty_like(numbers)
            for (i, j), number in np.ndenumerate(numbers):
                item = outcome.items[j]
                rows[i, j] = composer.add(int(number), item.choices, item.id, real=cell.baseline == NO_BASELINE)
            found[cell.file].append(Answered(bench, outcome, rows))
    return found
