"""From the answers of a method or a baseline to the tables of its cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import pyarrow as pa

from lensbench.evaluation.plan import Cell
from lensbench.harness.bench import AnswersOf
from lensbench.harness.crossfit import Outcome
from lensbench.harness.scoring import credit_as_chance, crossed_credit
from lensbench.results.crossed_files import crossed_table
from lensbench.results.records import CORRECTED, measure_table, table_from_columns


@dataclass(frozen=True)
class CellTables:
    """The results of a cell: records, other measures, credit under other activations; None where there are none."""

    records: pa.Table | None = None
    measures: pa.Table | None = None
    crossed: pa.Table | None = None

    @classmethod
    def joined(cls, parts: Sequence["CellTables"]) -> "CellTables":
        """Return the tables of several outcomes as those of one cell."""

        def join(kind: str) -> pa.Table | None:
            present = [table for one in parts if (table := getattr(one, kind)) is not None]
            return pa.concat_tables(present).unify_dictionaries() if present else None

        return cls(*(join(kind.name) for kind in fields(cls)))


@dataclass(frozen=True)
class Tables:
    """Makes the tables of a run.

    Attributes:
        model: the target's name.
        verbalizer: the verbalizer's.
        seed: of the run.
        score: the score that decides, `corrected` or `raw`.
    """

    model: str
    verbalizer: str
    seed: int
    score: str

    def of(self, cell: Cell, bench: AnswersOf, outcome: Outcome, known: Mapping[str, bool] | None) -> CellTables:
        """Return the records of an outcome, and what else was measured.

        Args:
            cell: whose outcome it is.
            bench: makes the columns of its relation.
            outcome: the answers.
            known: whether the target knows the fact, by subject; None where nobody asked.
        """
        items, scores = outcome.items, outcome.scores
        who = {
            "model": self.model,
            "verbalizer": self.verbalizer,
            "task": cell.task,
            "inspector": cell.inspector,
            "baseline": cell.baseline,
        }
        columns = bench.columns(items, scores, outcome.layers, correct_prior=outcome.zero_shot)
        if outcome.credited_as_chance is not None:
            credit_as_chance(columns, outcome.credited_as_chance)
        if known is not None:
            columns["known"] = [known[item.subject] for item in items] * (len(columns["correct"]) // len(items))
        records = table_from_columns({**columns, **who, "seed": self.seed})
        where = {**who, "relation": bench.relation.name, "site": cell.site}
        # Whole answers know of no wrong answer that counts as a guess.
        guessed = outcome.credited_as_chance is not None
        measured = bench.measures(items, replace(scores, whole=None) if guessed else scores, outcome.layers)
        measures = measure_table(measured, **where) if measured["value"] else None
        return CellTables(records, measures, self._crossed(bench, outcome, where))

    def _crossed(self, bench: AnswersOf, outcome: Outcome, where: dict[str, str]) -> pa.Table | None:
        """Return the credit of items under each other's activations, where it can be known."""
        layers = [layer for layer in outcome.layers if layer is not None]
        if not outcome.exchangeable or not layers:
            return None
        corrects = outcome.zero_shot and self.score == CORRECTED
        credit, golds = crossed_credit(outcome.items, bench.answers, outcome.scores, correct_prior=corrects)
        names = [item.id for item in outcome.items]
        return crossed_table(credit, layers, outcome.scores.attempts, names, golds, **where)
