"""The paper and the key of an exam, made of all that recorders were asked."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.evaluation.given import edits_of, name_of
from lensbench.evaluation.plan import Cell, CellResult
from lensbench.exam import key as keys
from lensbench.exam.composing import Composer, new_names
from lensbench.exam.decoys import PaperRow
from lensbench.exam.examiner import Examiner, ExamSettings, place_rows
from lensbench.exam.key import PAPER, PLACES, CellKey, Key
from lensbench.exam.paper import (
    FORMAT,
    ROW_SCHEMA,
    TEXT_COLUMNS,
    TRAINING_COLUMN,
    TRAINING_SCHEMA,
    Table,
    finish_paper,
    write_tables,
)
from lensbench.harness.recording import Recorder, Recording, TrainingSet
from lensbench.results.records import MEASURES, RECORDS, write_table
from lensbench.utils.cache import atomic_folder, sha256_of

LAYERS = "Layer 0 is the embeddings, layer l the residual stream after block l; of the last, before the final norm."


@dataclass
class ComposedExam:
    """An exam that is ready to be written.

    Args:
        settings: what it asks.
        examiner: that asked it.
        recording: of the recorders.
        results: of the cells, by file.
        seed: of everything random.
    """

    settings: ExamSettings
    examiner: Examiner
    recording: Recording
    results: dict[str, CellResult]
    seed: str

    def __post_init__(self) -> None:
        self.composer = Composer(self.recording, self.seed, self.examiner.precision)
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
        date = datetime.now(tz=UTC).date().isoformat()
        files = sorted(path for path in key_folder.rglob("*") if path.is_file())
        name = new_names(1, self.seed, "exam", digits=8)[0]
        real = sum(row.real for row in self.composer.rows)
        plan = self.examiner.plan
        key = Key(
            keys.FORMAT, name, self.seed, self.settings.config.model_dump(mode="json", exclude={"out"}),
            self.examiner.baselines, plan, self.examiner.asked(), self.cells,
            tuple((self.names[one], self.names[other], kind) for one, other, kind in self.pairs),
            (real, len(self.composer.rows) - real),
            {str(path.relative_to(key_folder)): sha256_of(path) for path in files}, {},
        )  # fmt: skip
        with atomic_folder(folder / PAPER) as paper_folder:
            write_tables(paper_folder, self._asked_table(), self._training_table())
            handed = sorted(path for path in paper_folder.rglob("*") if path.is_file())
            key = replace(key, paper={str(path.relative_to(paper_folder)): sha256_of(path) for path in handed})
            about = self._about(name, date, keys.write_key(key_folder, key))
            finish_paper(paper_folder, about, self.composer.width, date)

    def _about(self, name: str, date: str, digest: str) -> dict[str, Any]:
        config, context = self.settings.config, self.examiner.context
        setting, capture = self.examiner.plan.setting, self.settings.capture
        base, edits = edits_of(config.model, offline=config.offline)
        reader, read_edits = edits_of(config.verbalizer or config.model, offline=config.offline)
        about: dict[str, Any] = {
            "model": name_of(base), "revision": config.revision or "", "edited": bool(edits),
            "verbalizer": name_of(reader), "n_layers": context.model.n_layers,
            # Of a model that was edited the fingerprint would say which edit.
            **({} if edits else {"fingerprint": setting["model_fingerprint"]}),
            **({} if read_edits else {"verbalizer_fingerprint": context.verbalizer.fingerprint}),
        }  # fmt: skip
        if capture is not None:
            name_and_depth = {"model": capture.about.model, "n_layers": capture.about.n_layers}
            about = {**name_and_depth, "revision": capture.about.revision, "edited": False, "verbalizer": ""}
        return {
            "format": FORMAT, "exam": name, "made": date, "lensbench": version("lensbench"), **about,
            "layers": list(context.layers), "layer_convention": LAYERS,
            "dtype": setting["dtype"].removeprefix("torch."), "score": context.score,
            "reads": sorted(Recorder(self.recording, self.settings.text).reads), "training": self.settings.training,
            "rows": len(self.order), "key_sha256": digest,
        }  # fmt: skip

    def _asked_table(self) -> Table:
        rows = [self.composer.rows[place] for place, _ in self.order]
        extra = [TRAINING_COLUMN] * self.settings.training + list(TEXT_COLUMNS) * self.settings.text
        schema = pa.schema([*ROW_SCHEMA, *extra])
        named = zip(rows, self.names, self.order, strict=True)
        listed = [self._shown(row, name, placed.sheet) for row, name, placed in named]
        return Table(pa.Table.from_pylist(listed, schema), np.stack([row.asked.activation for row in rows]))

    def _shown(self, row: PaperRow, name: str, sheet: int) -> dict[str, Any]:
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
            one = self.recording.training[digest]
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
