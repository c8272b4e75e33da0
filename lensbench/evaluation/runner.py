"""The workshop: the models, methods and benches of a run, at work on one cell after another."""

import ctypes
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from lensbench.baselines.spec import Baseline
from lensbench.errors import NotApplicableError
from lensbench.evaluation.blind import BlindAnswers, outcomes_of
from lensbench.evaluation.items import (
    Dropped,
    check_prompts,
    make_benches,
    short_answers,
    tell_dropped,
    with_telling_answers,
)
from lensbench.evaluation.models import load_context
from lensbench.evaluation.plan import (
    Cell,
    CellResult,
    Job,
    Make,
    Place,
    Plan,
    describe_method,
    failure,
    make_inspectors,
    method_version,
    plan_cells,
    required_baselines,
    sites_of,
)
from lensbench.evaluation.tables import CellTables, Tables
from lensbench.harness.bench import Bench, layers_shown
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit, Fits, Outcome
from lensbench.harness.isolated_fits import IsolatedFits
from lensbench.harness.knowledge import Knowledge, knowledge_cache, shares
from lensbench.harness.mapped import Arrays
from lensbench.harness.recording import require_one_layer
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.scores import AttemptName
from lensbench.inspectors.target import Target
from lensbench.models.patching.patcher import patcher_of
from lensbench.utils.costs import Costs, peak_memory

LOG = logging.getLogger("lensbench")


class Runner:
    """Loads what a job needs, plans its cells, and works at any of them.

    Args:
        job: what is asked.
        makes: the methods; None for those of the configuration.

    Attributes:
        plan: what is to be done.
        baselines: the baselines, by name.
        context: the models, and how they are read.
        makes: the methods.
        benches: the items by place, checked.

    Raises:
        UsageError: methods that do not fit the models.
        LensbenchError: a model that cannot be loaded, or a task that it cannot be asked.
    """

    def __init__(self, job: Job, makes: dict[str, Make] | None = None) -> None:
        self.baselines = job.baselines
        self.makes = make_inspectors(job.config) if makes is None else makes
        self.context = self._load(job)
        for make in self.makes.values():
            make().check(Target(self.context.model), self.context.verbalizer)
            layers_shown(make(), self.context.layers)
            if job.config.isolate:
                require_one_layer(make(), self.context.layers, "isolate")
        dropped: Dropped = {}
        models = {self.context.model, self.context.verbalizer}
        job = replace(job, tasks=tuple(with_telling_answers(models, task, dropped) for task in job.tasks))
        kept = knowledge_cache()
        self._drawn: dict[tuple[str, str], frozenset[str]] = {}
        self._emptied: dict[Place, dict[str, str]] = {}
        self._knowledge = {task.name: Knowledge(self.context.model, task, kept) for task in job.tasks}
        self.benches = self._prepare(job, dropped)
        tell_dropped(dropped)
        self._fitted: dict[str, Fits] = {}
        self._blind = BlindAnswers(self.context.seed)
        self._arrays = Arrays() if job.config.isolate else None
        chosen = [(task.name, one) for task in job.tasks for one in task.relations.values()]
        controls, methods = self.context.controls, {name: make() for name, make in self.makes.items()}
        names = (self.context.model.name, self.context.verbalizer.name)
        self._tables = Tables(*names, self.context.seed, self.context.score)
        self.plan = Plan(
            setting={**self.context.describe(), "relatives": controls.describe(controls.models)},
            cells=tuple(plan_cells(self.context, job, self.makes)),
            versions={name: method_version(method) for name, method in methods.items()},
            methods={name: describe_method(method) for name, method in methods.items()},
            due=required_baselines(methods, job.baselines, controls.models.keys(), given=job.given),
            dropped=dropped,
            memory=self.context.model.budget.bytes,
            n_layers=self.context.model.n_layers,
            selected=tuple(f"{task}/{one.name}" for task, one in chosen if one.hops is not None and one.hops.correct),
            by_token=tuple(f"{task}/{one.name}" for task, one in chosen if one.by_token),
            short_answers={
                f"{task}/{one.name}": short_answers(self.context.verbalizer, one) for task, one in chosen if one.answers
            },
            summaries={f"{task}/{one.name}": one.summary for task, one in chosen},
            prose=tuple(dict.fromkeys(task for task, one in chosen if one.kind == "next_token")),
        )

    def _load(self, job: Job) -> RunContext:
        return load_context(job.config, job.baselines.values())

    def _prepare(self, job: Job, dropped: Dropped) -> dict[Place, list[Bench]]:
        """Check everything that can be checked before the first cell is run."""
        benches = {
            (task.name, site): make_benches(self.context, task, site, dropped)
            for task in job.tasks
            for site in sites_of(task, job.config)
        }
        self._select(benches, dropped)
        check_prompts(self.context, [make() for make in self.makes.values()], benches.values())
        return benches

    def _select(self, benches: dict[Place, list[Bench]], dropped: Dropped) -> None:
        """Keep of chains to be corrected those that can be: hops known, chain failed. Note who was drawn before."""
        for (task, site), group in benches.items():
            kept = []
            for bench in group:
                place = (task, bench.relation.name)
                self._drawn[place] = self._drawn.get(place, frozenset()) | bench.subjects
                hops = bench.relation.hops
                left = [bench] if hops is None or not hops.correct else self._correctable(task, bench, dropped)
                if not left:
                    why = "of no chain that was drawn does the model know both hops and fail the whole"
                    self._emptied.setdefault((task, site), {})[bench.relation.name] = why
                kept += left
            benches[task, site] = kept

    def _correctable(self, task: str, bench: Bench, dropped: Dropped) -> list[Bench]:
        reasons = self._knowledge[task].correctable(bench.relation.name, bench.subjects)
        noted = dropped.setdefault(f"{task}/{bench.relation.name}", {})
        noted.update({item.id: reasons[item.subject] for item in bench.items if item.subject in reasons})
        items = tuple(item for item in bench.items if item.subject not in reasons)
        return [replace(bench, items=items)] if items else []

    def work(self, cell: Cell) -> CellResult:
        """Score a cell. A cell that fails does not end the others: how it failed is in what is returned."""
        found, known, begun = CellTables(), {}, time.perf_counter()
        try:
            found, entry = self.score(cell, self.benches[cell.place], self._fitted.setdefault(cell.inspector, {}))
            known = self._shares(cell)
        except Exception as error:
            found, entry = CellTables(), failure(error)
        entry["seconds"] = round(time.perf_counter() - begun, 3)
        entry["peak_memory_mb"] = peak_memory()
        give_back()
        verbalizer = self.context.verbalizer
        state = {
            "patched_pass": patcher_of(verbalizer).mode,
            "memory_budget": verbalizer.budget.bytes,
            "knowledge": known,
        }
        return CellResult(cell, found.records, entry, found.measures, state, found.crossed)

    def score(self, cell: Cell, benches: Iterable[Bench], fitted: Fits) -> tuple[CellTables, dict[str, Any]]:
        """Score a cell on these benches; return what was found, and what the journal is to say."""
        baseline = self.baselines.get(cell.baseline)
        costs = Costs()
        found, reasons = [], dict(self._emptied.get(cell.place, {}))
        attempts: dict[str, Any] = {}
        left_out: dict[str, list[str]] = {}
        make = self.makes[cell.inspector]
        with self._isolated() as isolated:
            fits = fitted if isolated is None else {}
            for whole_bench in benches:
                bench = _learnable(whole_bench, make())
                if few := sorted(set(whole_bench.answers) - set(bench.answers)):
                    left_out[bench.relation.name] = few
                method = CrossFit(make, bench, fits, costs, isolated)
                try:
                    outcomes = self._outcomes(cell, method, baseline)
                    found += [self.tables(cell, bench, outcome) for outcome in outcomes]
                    attempts |= {} if baseline else _described_attempts(outcomes)
                except NotApplicableError as error:
                    reasons[bench.relation.name] = str(error)
                if isolated is not None and method.learns_labels:
                    fits.clear()
                    isolated.close()
        whole = CellTables.joined(found)
        rows = 0 if whole.records is None else len(whole.records)
        done = {"status": "not applicable" if whole.records is None else "done", "rows": rows, **costs.entry()}
        more = {"not_applicable": reasons, "attempts": attempts, "left_out": left_out}
        return whole, done | {name: values for name, values in more.items() if values}

    def _outcomes(self, cell: Cell, method: CrossFit, baseline: Baseline | None) -> list[Outcome]:
        if method.isolated is not None and method.exchangeable and not method.learns_labels:
            return self._blind.outcomes(cell.place, method, cell.baseline, self.benches[cell.place], self.baselines)
        return outcomes_of(method, baseline)

    @contextmanager
    def _isolated(self) -> Iterator[IsolatedFits | None]:
        """Make what fits methods in processes of their own, for one cell; None where all are fitted in this one.

        A cell's fits are not shared with other cells: they would tell a method whether it is run as itself.
        """
        if self._arrays is None:
            yield None
            return
        isolated = IsolatedFits(self._arrays)
        try:
            yield isolated
        finally:
            isolated.close()

    def close(self) -> None:
        """Remove what was kept for other processes."""
        if self._arrays is not None:
            self._arrays.close()

    def ask_knowledge(self, place: Place, bench: Bench) -> None:
        """Find out what the target knows of a bench's subjects; what the cache has is not measured again."""
        self._knowledge[place[0]].known(bench.relation.name, bench.subjects)

    def _shares(self, cell: Cell) -> dict[str, dict[str, Any]]:
        asked = {name: self._drawn[cell.task, name] for name in cell.relations if (cell.task, name) in self._drawn}
        found = shares(self._knowledge[cell.task], list(asked), asked)
        return {f"{cell.task}/{relation}": share for relation, share in found.items()}

    def tables(self, cell: Cell, bench: Bench, outcome: Outcome) -> CellTables:
        """Return the tables of an outcome."""
        return self._tables.of(cell, bench, outcome, self.known(cell.task, bench))

    def known(self, task: str, bench: Bench) -> dict[str, bool] | None:
        """Return whether the target knows the fact of each subject, asked in text; None where nobody can ask."""
        return self._knowledge[task].known(bench.relation.name, bench.subjects)

    def forget(self, place: Place) -> None:
        """Forget the activations and fits of a place that is done with; what learned no labels serves all places."""
        self._blind.forget(place)
        self.benches[place] = [replace(bench) for bench in self.benches[place]]
        for fits in self._fitted.values():
            for key in [key for key in fits if key != ()]:
                del fits[key]


def _learnable(bench: Bench, inspector: Inspector) -> Bench:
    """The bench without the answers that the method cannot learn."""
    return bench.with_learnable_classes(inspector.class_subjects) if inspector.class_subjects else bench


def _described_attempts(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return the target layer and the variant of each attempt that has them."""
    names = [name for outcome in outcomes for name in outcome.scores.attempts]
    return {str(name): name.describe() for name in names if isinstance(name, AttemptName)}


def give_back() -> None:
    """Return freed memory to the system, where the C library has a call for it: glibc keeps it in pieces otherwise.

    Without this the memory of a long run grew with its items (benchmarks/README.md, 7).
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


Begin = Callable[[Cell], None]


class Executor(ABC):
    """Something that plans the cells of a job and works at them.

    Attributes:
        plan: what is to be done.
    """

    plan: Plan

    @abstractmethod
    def work(self, cells: Sequence[Cell], begin: Begin) -> Iterator[CellResult]:
        """Work at these cells, in any order.

        Args:
            cells: cells of the plan.
            begin: is told of each cell that is begun.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop working, and free what was taken."""


class LocalExecutor(Executor):
    """One runner in this process, cell by cell in the order of the plan."""

    def __init__(self, job: Job) -> None:
        self._runner = Runner(job)
        self.plan = self._runner.plan

    def work(self, cells: Sequence[Cell], begin: Begin) -> Iterator[CellResult]:
        """Work at these cells; activations are forgotten with the last cell of their place."""
        for i, cell in enumerate(cells):
            begin(cell)
            yield self._runner.work(cell)
            if not any(later.place == cell.place for later in cells[i + 1 :]):
                self._runner.forget(cell.place)

    def close(self) -> None:
        """Remove what was kept for other processes; the models go with this object."""
        self._runner.close()
