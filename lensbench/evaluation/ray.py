"""Cells on a Ray cluster, or on several processes of this machine: actors that each load the models once."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.plan import Cell, CellResult, Job, Place, Plan, failure
from lensbench.evaluation.runner import Begin, Executor, Runner

LOG = logging.getLogger("lensbench")
# A cell whose workers die this often is not tried again in this run.
TRIES = 3


class Worker:
    """What runs inside an actor: one runner, so that the models are loaded once."""

    def __init__(self, job: Job, threads: int) -> None:
        # As in the driver: how a matrix product is cut into threads may show in its last digits.
        torch.set_num_threads(threads)
        self._error: LensbenchError | None = None
        try:
            self._runner = Runner(job)
        except LensbenchError as error:
            self._error = error
        self._place: Place | None = None

    def plan(self) -> Plan | LensbenchError:
        """Return the plan as this worker sees it, or why it has none."""
        return self._error or self._runner.plan

    def work(self, cell: Cell) -> CellResult:
        """Work at a cell; activations of another place are forgotten first."""
        if self._place not in (None, cell.place):
            self._runner.forget(self._place)
        self._place = cell.place
        return self._runner.work(cell)

    def close(self) -> None:
        """Remove what was kept for other processes."""
        if self._error is None:
            self._runner.close()


@dataclass
class _Busy:
    """An actor at work."""

    actor: Any
    cell: Cell


class RayExecutor(Executor):
    """Sends cells to actors, the cells of one method at one place to the same actor where that can be.

    A worker that dies is replaced, and its cell is done again.

    Args:
        job: what is asked.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
        LensbenchError: what a runner refuses.
    """

    def __init__(self, job: Job) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--executor ray needs Ray; install it with: pip install 'lensbench[ray]'") from None
        self._ray: Any = ray
        self._began = not ray.is_initialized()
        if self._began:
            _connect(ray)
        self._job = job
        self._lost: Counter[Cell] = Counter()
        self._actors: list[Any] = []
        try:
            self.plan = self._first_plan()
        except BaseException:
            self.close()
            raise

    def _first_plan(self) -> Plan:
        actor = self._start()
        plan: Plan | LensbenchError = self._ray.get(actor.plan.remote())
        if isinstance(plan, LensbenchError):
            raise plan
        # The others form the same batches.
        self._job = replace(self._job, config=self._job.config.model_copy(update={"memory": plan.memory}))
        return plan

    def _start(self) -> Any:
        options = {"num_cpus": 1, "num_gpus": self._gpus_each()}
        actor = self._ray.remote(Worker).options(**options).remote(self._job, torch.get_num_threads())
        self._actors.append(actor)
        return actor

    def _workers(self) -> int:
        """The number given; else one for each GPU, or each node if there are none or a model is spread over them."""
        if self._job.config.workers:
            return self._job.config.workers
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        return self._gpus() if self._gpus() and self._job.config.device_map is None else nodes

    def _gpus_each(self) -> int:
        """One, or a share of all for a model that is spread over several."""
        if self._job.config.device == "cpu" or not self._gpus():
            return 0
        return 1 if self._job.config.device_map is None else max(1, self._gpus() // self._workers())

    def _gpus(self) -> int:
        return int(self._ray.cluster_resources().get("GPU", 0))

    def work(self, cells: Sequence[Cell], begin: Begin) -> Iterator[CellResult]:
        """Work at these cells on all actors; they are returned as they are done."""
        waiting = list(cells)
        busy: dict[Any, _Busy] = {}
        idle: list[tuple[Any, Cell | None]] = [(self._actors[0], None)]
        idle += [(self._start(), None) for _ in range(min(self._workers(), len(cells)) - 1)]
        while waiting or busy:
            while waiting and idle:
                actor, last = idle.pop()
                cell = _next(waiting, last, [one.cell for one in busy.values()])
                begin(cell)
                busy[actor.work.remote(cell)] = _Busy(actor, cell)
            done, _ = self._ray.wait(list(busy), num_returns=1)
            for reference in done:
                one = busy.pop(reference)
                work = self._result(reference, one, waiting)
                if work is not None:
                    yield work
                    idle.append((one.actor, one.cell))
                elif waiting or busy:
                    idle.append((self._start(), None))

    def _result(self, reference: Any, one: _Busy, waiting: list[Cell]) -> CellResult | None:
        """Return what came of a cell; None where its worker died, and the cell waits again."""
        try:
            work: CellResult = self._ray.get(reference)
            return work
        except self._ray.exceptions.RayActorError as error:
            self._actors.remove(one.actor)
            self._lost[one.cell] += 1
            LOG.warning("a worker died at %s %s: the cell is run again", one.cell.inspector, one.cell.baseline)
            if self._lost[one.cell] < TRIES:
                waiting.insert(0, one.cell)
                return None
            self._actors.append(one.actor)
            return CellResult(one.cell, None, failure(error))

    def close(self) -> None:
        """End the workers, and the cluster where it was started here."""
        if self._job.config.isolate:
            with suppress(self._ray.exceptions.RayError):  # one has died
                self._ray.get([actor.close.remote() for actor in self._actors])
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._began:
            self._ray.shutdown()


def _connect(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"no Ray cluster: {reason}; start one with `ray start --head`, or unset RAY_ADDRESS to use this machine"
        ) from None


def _next(waiting: list[Cell], last: Cell | None, others: Sequence[Cell]) -> Cell:
    """Take the cell that an actor has most of already: its method's at its place, its place's, else one untouched."""

    def rank(cell: Cell) -> int:
        if last is not None and (cell.place, cell.inspector) == (last.place, last.inspector):
            return 0
        if any((cell.place, cell.inspector) == (other.place, other.inspector) for other in others):
            return 3
        return 1 if last is not None and cell.place == last.place else 2

    best = min(range(len(waiting)), key=lambda i: (rank(waiting[i]), i))
    return waiting.pop(best)
