"""Making an exam: an ordinary evaluation in which stand-ins take the methods' place."""

import logging
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.dry_run import estimate
from lensbench.evaluation.given import edits_of, name_of
from lensbench.evaluation.plan import Cell, CellResult, Job, Make, Place, check_job
from lensbench.evaluation.runner import Runner
from lensbench.evaluation.tables import CellTables
from lensbench.exam import key as keys
from lensbench.exam.captured import Capture, CapturedResiduals, with_capture
from lensbench.exam.composing import REPEATED, SHEETS, Composer, Row, new_names
from lensbench.exam.key import PLACES, Asked, CellKey, Key, Part
from lensbench.exam.paper import (
    FORMAT,
    PAPER,
    ROW_SCHEMA,
    TEXT_COLUMNS,
    TRAINING_COLUMN,
    TRAINING_SCHEMA,
    Paper,
    Table,
    write_paper,
)
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import Outcome
from lensbench.harness.tracing import LearningStandIn, Notes, StandIn, TrainingSet, numbers_of
from lensbench.results.records import MEASURES, NO_BASELINE, RECORDS, write_table
from lensbench.tasks import N_FOLDS
from lensbench.utils.cache import atomic_folder, sha256_of
from lensbench.utils.layer_spec import parse_layers
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")
TAUGHT = (3, 4)
"""The folds whose subjects are in the training sets, where an exam has some; the other subjects are asked about."""
LAYERS = "Layer 0 is the embeddings, layer l the residual stream after block l; of the last, before the final norm."


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

    def seeded(self) -> "ExamSettings":
        """Return the settings with a seed, drawn now where there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.token_hex(16))

    def makes(self, notes: Notes) -> dict[str, Make]:
        """Return the stand-ins, by name."""
        kinds = (StandIn, LearningStandIn) if self.training else (StandIn,)
        return {kind.name: partial(kind, notes, self.text) for kind in kinds}


class Examiner(Runner):
    """Runs an evaluation with stand-ins, and keeps what came of each cell.

    Args:
        job: what is asked.
        settings: of the exam.
        notes: where the stand-ins write.

    Attributes:
        outcomes: cell file → its benches and outcomes.
    """

    def __init__(self, job: Job, settings: ExamSettings, notes: Notes) -> None:
        self._taught = settings.training
        self._capture = settings.capture
        self._notes = notes
        self.outcomes: dict[str, list[tuple[Bench, Outcome]]] = defaultdict(list)
        super().__init__(job, settings.makes(notes))
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

    def known(self, task: str, bench: Bench) -> dict[str, bool] | None:
        """Return what the target knows; of one that does not run here nothing is known."""
        return super().known(task, bench) if self._capture is None else None

    def _shares(self, cell: Cell) -> dict[str, dict[str, Any]]:
        return super()._shares(cell) if self._capture is None else {}

    def work(self, cell: Cell) -> CellResult:
        """Score a cell, and note where it reads."""
        self._notes.site = cell.site
        found = super().work(cell)
        if found.entry["status"] == "failed":
            raise LensbenchError(f"the exam cannot be made: {cell.file} failed: {found.entry['error'].splitlines()[0]}")
        return found

    def tables(self, cell: Cell, bench: Bench, outcome: Outcome) -> CellTables:
        """Keep an outcome; return its tables."""
        self.outcomes[cell.file].append((bench, outcome))
        return super().tables(cell, bench, outcome)

    def asked(self) -> dict[str, Asked]:
        """Return what is asked, by task, site and relation."""
        found = {}
        for (task, site), group in self.benches.items():
            for bench in group:
                name = bench.relation.name
                known = self.known(task, bench)
                items = {item.id: item for item in bench.items}
                found[f"{task}/{site}/{name}"] = Asked(bench.relation, items, known)
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


Prepare = Callable[[Path], dict[str, Any]]


def make_exam(
    settings: ExamSettings, out: Path, progress: Progress = silent, *, prepare: Prepare = lambda _: {}
) -> Path:
    """Make an exam: its paper, and its key.

    Args:
        settings: what it asks.
        out: a new folder.
        progress: is told of each cell.
        prepare: is given the folder of the key before anything is asked, and returns settings that it changes.

    Returns:
        The folder.

    Raises:
        UsageError: settings that do not fit, or a folder that is there.
        LensbenchError: a cell failed, or a baseline computes with scores.
    """
    if out.exists():
        raise UsageError(f"--out {out} is there already; give a new folder")
    settings = settings.seeded()
    check_job(with_embeddings(settings.config))
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        (out / keys.KEY).mkdir(parents=True)
        config = settings.config.model_copy(update=prepare(out / keys.KEY))
        _compose(replace(settings, config=config), progress).write(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        for folder in made[1:]:
            with suppress(OSError):  # something else is in it
                folder.rmdir()
        raise
    return out


def _compose(settings: ExamSettings, progress: Progress) -> "_Composed":
    """Ask the stand-ins everything."""
    notes = Notes()
    examiner = Examiner(check_job(with_embeddings(settings.config)), settings, notes)
    results: dict[str, CellResult] = {}
    with progress(len(examiner.plan.cells)) as advance:
        for cell in examiner.plan.cells:
            advance(f"{cell.task} {cell.site}: {cell.baseline}")
            results[cell.file] = examiner.work(cell)
            advance(None)
    return _Composed(settings, examiner, notes, results, str(settings.seed))


def learn_places(bench: Bench) -> None:
    """Note where the items of a bench were captured.

    Raises:
        LensbenchError: one was not.
    """
    kept = bench.context.residuals
    assert isinstance(kept, CapturedResiduals)
    kept.learn([*bench.items, *bench.train_items])


def with_embeddings(config: RunConfig) -> RunConfig:
    """Return the settings with layer 0 among the layers: if it were asked of a baseline alone, its rows would tell."""
    chosen = parse_layers(config.layers, None)
    if chosen is not None and 0 not in chosen:
        return config.model_copy(update={"layers": f"0,{config.layers}"})
    return config


class Answered(NamedTuple):
    """An outcome that is made of answers, and the row of each of its layers and items."""

    bench: Bench
    outcome: Outcome
    rows: Int[np.ndarray, "layer item"]

    def part(self) -> Part:
        """Return what the key says of it."""
        outcome = self.outcome
        return Part(
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
            numbers = numbers_of(outcome.scores, f"the baseline {cell.baseline}")
            if numbers is None:
                continue
            rows = np.empty_like(numbers)
            for (i, j), number in np.ndenumerate(numbers):
                item = outcome.items[j]
                rows[i, j] = composer.add(int(number), item.choices, item.id, real=cell.baseline == NO_BASELINE)
            found[cell.file].append(Answered(bench, outcome, rows))
    return found


@dataclass
class _Composed:
    """An exam that is ready to be written."""

    settings: ExamSettings
    examiner: Examiner
    notes: Notes
    results: dict[str, CellResult]
    seed: str

    def __post_init__(self) -> None:
        self.composer = Composer(self.notes, self.seed)
        self.places = place_rows(self.composer, self.examiner)
        self.cells = {cell.file: self._cell(cell) for cell in self.examiner.plan.cells}
        self.composer.fill()
        self.order, self.pairs = self.composer.ordered()
        self.names = new_names(len(self.order), self.seed, "names")
        self.name_of = {place: self.names[at] for at, (place, _) in reversed(list(enumerate(self.order)))}
        sets = {row.training for row in self.composer.rows if row.training}
        self.sets = dict(zip(sorted(sets), new_names(len(sets), self.seed, "sets", digits=4), strict=True))

    def _cell(self, cell: Cell) -> CellKey:
        result, placed = self.results[cell.file], self.places[cell.file]
        if placed and len(placed) < len(self.examiner.outcomes[cell.file]):
            raise LensbenchError(f"the baseline {cell.baseline} asks the method and others; an exam cannot do both")
        parts = tuple(one.part() for one in placed)
        return CellKey(result.entry, parts, () if parts else tuple(_tables(result)))

    def write(self, folder: Path) -> None:
        """Write the key, and then the paper, into the exam's folder."""
        key_folder = folder / keys.KEY
        pq.write_table(self._place_table(), key_folder / keys.ROWS, compression="zstd")
        for file, cell in self.cells.items():
            for kind in cell.tables:
                write_table(key_folder / kind / file, _tables(self.results[file])[kind])
        files = sorted(path for path in key_folder.rglob("*") if path.is_file())
        name = new_names(1, self.seed, "exam", digits=8)[0]
        real = sum(row.real for row in self.composer.rows)
        plan = self.examiner.plan
        key = Key(
            keys.FORMAT, name, self.seed, self.settings.config.model_dump(mode="json", exclude={"out"}),
            self.examiner.baselines, plan, self.examiner.asked(), self.cells,
            tuple((self.names[one], self.names[other], kind) for one, other, kind in self.pairs),
            (real, len(self.composer.rows) - real),
            {str(path.relative_to(key_folder)): sha256_of(path) for path in files},
        )  # fmt: skip
        date = datetime.now(tz=UTC).date().isoformat()
        about = self._about(name, date, keys.write_key(key_folder, key))
        with atomic_folder(folder / PAPER) as paper_folder:
            write_paper(paper_folder, Paper(about, self._asked_table(), self._training_table()), date)

    def _about(self, name: str, date: str, digest: str) -> dict[str, Any]:
        config, context = self.settings.config, self.examiner.context
        base, edits = edits_of(config.model, offline=config.offline)
        setting = self.examiner.plan.setting
        about: dict[str, Any] = {
            "model": name_of(base), "revision": config.revision or "", "edited": bool(edits),
            # Of a model that was edited the fingerprint would say which edit.
            **({} if edits else {"fingerprint": setting["model_fingerprint"]}),
            "verbalizer": context.verbalizer.name, "verbalizer_fingerprint": context.verbalizer.fingerprint,
            "n_layers": context.model.n_layers,
        }  # fmt: skip
        if (capture := self.settings.capture) is not None:
            own = {"model": capture.about.model, "revision": capture.about.revision, "verbalizer": capture.about.model}
            about |= {**own, "verbalizer_fingerprint": capture.fingerprint, "n_layers": capture.about.n_layers}
        return {
            "format": FORMAT, "exam": name, "made": date, "lensbench": version("lensbench"), **about,
            "layers": list(context.layers), "layer_convention": LAYERS,
            "dtype": setting["dtype"].removeprefix("torch."), "score": context.score,
            "reads": sorted(StandIn(self.notes, self.settings.text).reads), "training": self.settings.training,
            "rows": len(self.order), "key_sha256": digest,
        }  # fmt: skip

    def _asked_table(self) -> Table:
        rows = [self.composer.rows[place] for place, _ in self.order]
        extra = [TRAINING_COLUMN] * self.settings.training + list(TEXT_COLUMNS) * self.settings.text
        schema = pa.schema([*ROW_SCHEMA, *extra])
        named = zip(rows, self.names, self.order, strict=True)
        listed = [self._shown(row, name, placed.sheet) for row, name, placed in named]
        return Table(pa.Table.from_pylist(listed, schema), np.stack([row.asked.activation for row in rows]))

    def _shown(self, row: Row, name: str, sheet: int) -> dict[str, Any]:
        question, text = row.asked.question, row.asked.text
        shown = {
            "row": name, "sheet": sheet, "layer": row.asked.layer, "site": question.site, "question": question.text,
            "forms": list(question.forms), "answers": list(question.answers), "choices": list(row.choices),
            "training": self.sets.get(row.training, ""),
        }  # fmt: skip
        return shown if text is None else {**shown, "source": text.source, "subject": text.subject}

    def _training_table(self) -> Table | None:
        if not self.settings.training:
            return None
        listed, values = [], []
        # Items and groups keep their order: methods that choose a setting within them split them by it.
        for digest, name in sorted(self.sets.items(), key=lambda one: one[1]):
            one = self.notes.training[digest]
            listed += [self._taught(one, name, i) for i in range(len(one.labels))]
            values += list(one.activations)
        return Table(pa.Table.from_pylist(listed, TRAINING_SCHEMA), np.stack(values))

    def _taught(self, one: TrainingSet, name: str, at: int) -> dict[str, Any]:
        question = one.question
        return {
            "training": name, "layer": one.layer, "site": question.site, "question": question.text,
            "answers": list(question.answers), "group": one.groups[at], "label": one.labels[at],
        }  # fmt: skip

    def _place_table(self) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in PLACES.names}
        for cell in self.examiner.plan.cells:
            for part, one in enumerate(self.places[cell.file]):
                for (i, j), row in np.ndenumerate(one.rows):
                    item = one.outcome.items[j]
                    values = (cell.file, part, i, j, self.name_of[int(row)], cell.baseline, item.id, item.answer)
                    for name, value in zip(PLACES.names, values, strict=True):
                        columns[name].append(value)
        return pa.Table.from_pydict(columns, PLACES)


def _tables(result: CellResult) -> dict[str, pa.Table]:
    """Return the tables of a cell, by the folder that they are kept in."""
    tables = {RECORDS: result.table, MEASURES: result.measures}
    return {kind: table for kind, table in tables.items() if table is not None}


@dataclass(frozen=True)
class ExamSize:
    """What an exam will be.

    Attributes:
        rows: of its paper.
        bytes: of its paper, training sets included.
        seconds: that it takes to make, beyond planting.
    """

    rows: int
    bytes: int
    seconds: float


def size_of_exam(settings: ExamSettings, *, planted: bool = False) -> ExamSize:
    """Try what an exam asks on a few items, and scale; nothing is written.

    Args:
        settings: what it asks.
        planted: whether facts are to be planted first, so that the model without them is among the rivals.

    Raises:
        UsageError: settings that do not fit.
        LensbenchError: a baseline fails on these items.
    """
    notes = Notes()
    examiner = Examiner(check_job(with_embeddings(settings.config)), settings, notes)
    found = estimate(examiner, list(examiner.plan.cells))
    composer = Composer(notes, "")
    place_rows(composer, examiner)
    composer.fill()
    tried = max(1, sum(row.real for row in composer.rows))
    layers = len(examiner.context.layers)
    benches = [bench for group in examiner.benches.values() for bench in group]
    real = sum(len(bench.items) for bench in benches) * layers
    rows = round(real * (len(composer.rows) / tried + planted) * (1 + 1 / SHEETS + REPEATED))
    taught = sum(len(bench.train_items) for bench in benches) * len(notes.training) // max(1, len(benches))
    return ExamSize(rows, (rows + taught) * examiner.context.model.d_model * 4, found.seconds)
