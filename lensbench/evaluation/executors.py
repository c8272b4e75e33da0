"""Who works at the cells of a run: this process, or others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from lensbench.evaluation.plan import Cell, Job, Plan
from lensbench.evaluation.runner import CellResult, Runner

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
        """Nothing to free: the models go with this object."""


def start_executor(job: Job) -> Executor:
    """Start the executor that the configuration names.

    Raises:
        UsageError: it is not installed, or what the job asks does not fit.
        LensbenchError: a model or task that cannot be used.
    """
    if job.config.executor == "ray":
        from lensbench.evaluation.ray import RayExecutor

        return RayExecutor(job)
    return LocalExecutor(job)
