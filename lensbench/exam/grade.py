"""Grading an exam: the answers take the recorders' place, and what comes of it is a run like any other."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.journal import Journal, hold_folder
from lensbench.evaluation.plan import Cell, CellResult, Plan, baselines_of, required_baselines
from lensbench.evaluation.tables import CellTables, Tables
from lensbench.exam import key as keys
from lensbench.exam.answers import Answers, Card, read_answers, read_card
from lensbench.exam.key import PAPER, Key, OutcomeKey, read_key, read_places
from lensbench.exam.paper import read_paper
from lensbench.harness.bench import AnswersOf
from lensbench.harness.crossfit import Outcome
from lensbench.harness.recording import LearningRecorder, Recorder
from lensbench.inspectors.scores import Scores
from lensbench.results.method_checks import MethodChecks
from lensbench.results.records import MEASURES, NAME, NO_BASELINE, RECORDS, read_shard
from lensbench.runs.run import Run, finish
from lensbench.tasks import Relation

LOG = logging.getLogger("lensbench")


def grade_exam(exam: Path, answers: Path, out: Path, card: Path | None = None) -> Run:
    """Grade answers to an exam.

    Args:
        exam: the folder of the exam, with its key.
        answers: the Parquet file that came back.
        out: the run folder.
        card: what gave the answers; None takes `ANSWERS.card.toml`, where it is there.

    Returns:
        The run: its records, gaps and verdicts are made as those of an evaluation.

    Raises:
        UsageError: answers, or a card, that cannot be graded; nothing is written then.
        LensbenchError: the exam is damaged, or its key is another.
    """
    paper = read_paper(exam / PAPER)
    key = read_key(exam / keys.KEY, paper.about["key_sha256"])
    beside = answers.with_suffix(".card.toml")
    card = card or (beside if beside.is_file() else None)
    if card is None:
        LOG.warning("there is no %s: the method is taken to learn nothing, and to read whatever the exam has", beside)
    read = read_card(card, answers, paper)
    graded = _Graded(exam / keys.KEY, key, read, read_answers(answers, paper, read))
    with hold_folder(out):
        journal = Journal(out, graded.config, graded.baselines, graded.plan)
        journal.begin()
        for cell, original in graded.cells.items():
            if not journal.settled(cell):
                journal.keep(graded.work(cell, original))
        finish(out)
    return Run(out)


@dataclass(frozen=True)
class _Relation(AnswersOf):
    relation: Relation


@dataclass(frozen=True)
class _Graded:
    """Answers with the key to them."""

    folder: Path
    key: Key
    card: Card
    answers: Answers

    def __post_init__(self) -> None:
        recorder = self.key.plan.methods.get(self._recorder_name)
        if recorder is None:
            raise UsageError(f"this exam has no questions for a method that learns from {self.card.learns_from}")

    @property
    def _recorder_name(self) -> str:
        return (LearningRecorder if self.card.learns_from == "labels" else Recorder).name

    @property
    def config(self) -> RunConfig:
        """The settings, as those of a run with this method."""
        asked = {name: value for name, value in self.key.config.items() if name not in ("inspectors", "parameters")}
        return RunConfig.model_validate(asked).model_copy(update={"inspectors": (self.card.name,)})

    @cached_property
    def baselines(self) -> dict[str, Any]:
        """The rivals of what this method reads."""
        return {one.name: one for one in baselines_of(self.card, self.key.baselines)}

    @cached_property
    def version(self) -> str:
        """A digest of what the card says and of the answers: another file of answers is another method."""
        described = hashlib.sha256(self.card.model_dump_json().encode())
        for row in sorted(self.answers.scores):
            described.update(self.answers.scores[row].tobytes())
        return described.hexdigest()[:12]

    @cached_property
    def cells(self) -> dict[Cell, Cell]:
        """The cells of this method → those of the recorder."""
        found = {}
        for cell in self.key.plan.cells:
            if cell.inspector == self._recorder_name and cell.baseline in {NO_BASELINE, *self.baselines}:
                digest = hashlib.sha256(f"{cell.digest}{self.version}".encode()).hexdigest()[:12]
                own = replace(cell, inspector=self.card.name, method=self.version, digest=digest)
                found[own] = cell
        return found

    @cached_property
    def plan(self) -> Plan:
        """The plan of the run."""
        name, plan = self.card.name, self.key.plan
        checks = MethodChecks(tuple(self.answers.problems(self.key.repeats)))
        described = {
            "summary": self.card.summary, "reads": sorted(self.card.reads), "learns_from": self.card.learns_from,
            "version": self.version, "rule": self.card.rule, "checks": checks.entry(),
            "card": self.card.model_dump(mode="json"),
        }  # fmt: skip
        roles = set(plan.setting["relatives"])
        given = any(one.relation.given for one in self.key.asked.values())
        return replace(
            plan, cells=tuple(self.cells), versions={name: self.version}, methods={name: described},
            setting={**plan.setting, "exam": self.key.exam},
            due=required_baselines({name: self.card}, self.baselines, roles, given=given),
        )  # fmt: skip

    def work(self, cell: Cell, original: Cell) -> CellResult:
        """Return the result of a cell."""
        known = self.key.cells[original.file]
        if known.parts:
            found = CellTables.joined(list(self._tables(cell, original)))
        else:
            found = CellTables(self._kept(RECORDS, cell, original), self._kept(MEASURES, cell, original))
        attempts = {"rows": 0 if found.records is None else len(found.records)}
        return CellResult(cell, found.records, {**known.entry, **attempts}, found.measures, {}, found.crossed)

    def _kept(self, kind: str, cell: Cell, original: Cell) -> pa.Table | None:
        """A table of a rival that was asked when the exam was made, under the method's name."""
        if kind not in self.key.cells[original.file].tables:
            return None
        path = self.folder / kind / original.file
        table = read_shard(path) if kind == RECORDS else pq.read_table(path, memory_map=False, partitioning=None)
        names = pa.array([cell.inspector] * len(table)).dictionary_encode().cast(NAME)
        at = table.schema.get_field_index("inspector")
        return table.set_column(at, table.schema.field(at), names)

    def _tables(self, cell: Cell, original: Cell) -> Iterator[CellTables]:
        setting = self.key.plan.setting
        tables = Tables(setting["model"], setting["verbalizer"], setting["seed"], setting["score"])
        for i, part in enumerate(self.key.cells[original.file].parts):
            asked = self.key.asked[f"{cell.task}/{cell.site}/{part.relation}"]
            items = tuple(asked.items[name] for name in part.items)
            outcome = Outcome(
                self._scores(part, self.places[original.file, i]), part.layers, items, part.zero_shot,
                part.credited_as_chance, part.exchangeable and "text" not in self.card.reads,
            )  # fmt: skip
            yield tables.of(cell, _Relation(asked.relation), outcome, asked.known)

    @cached_property
    def places(self) -> Mapping[tuple[str, int], np.ndarray]:
        """Which rows answer what."""
        return read_places(self.folder)

    def _scores(self, part: OutcomeKey, rows: np.ndarray) -> Scores:
        found = np.stack([[self.answers.scores[row] for row in layer] for layer in rows])  # layer item attempt answer
        texts = None
        if self.answers.texts:
            said = np.array([[self.answers.texts[row] for row in layer] for layer in rows], dtype=object)
            texts = np.moveaxis(said, 2, 1)
        return Scores(self.answers.attempts, torch.from_numpy(np.moveaxis(found, 2, 1).copy()), texts=texts)
