"""Which method reads what in a language model, at which layer, and is it reading the model or only the input.

The names below are stable. They are imported when first used, so that `import lensbench` does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensbench.boards import write_leaderboard
    from lensbench.comparing import Comparison, compare
    from lensbench.errors import LensbenchError, UsageError
    from lensbench.evaluation import evaluate
    from lensbench.evidence import Evidence, NotApplicableError, Scores, Training
    from lensbench.exporting import export
    from lensbench.inspecting.reading import describe_token, inspect
    from lensbench.inspectors.base import Inspector
    from lensbench.model.loading import load_model
    from lensbench.run import Run, load_run
    from lensbench.scaffold import new
    from lensbench.tasks import Item, Task, find_tasks, load_task, load_tasks

__version__ = version("lensbench")
__all__ = [
    "Comparison",
    "Evidence",
    "Inspector",
    "Item",
    "LensbenchError",
    "NotApplicableError",
    "Run",
    "Scores",
    "Task",
    "Training",
    "UsageError",
    "compare",
    "describe_token",
    "evaluate",
    "export",
    "find_tasks",
    "inspect",
    "load_model",
    "load_run",
    "load_task",
    "load_tasks",
    "new",
    "write_leaderboard",
]

_HOMES = {
    "Comparison": "comparing",
    "Evidence": "evidence",
    "Inspector": "inspectors.base",
    "Item": "tasks",
    "LensbenchError": "errors",
    "NotApplicableError": "evidence",
    "Run": "run",
    "Scores": "evidence",
    "Task": "tasks",
    "Training": "evidence",
    "UsageError": "errors",
    "compare": "comparing",
    "describe_token": "inspecting.reading",
    "evaluate": "evaluation",
    "export": "exporting",
    "find_tasks": "tasks",
    "inspect": "inspecting.reading",
    "load_model": "model.loading",
    "load_run": "run",
    "load_task": "tasks",
    "load_tasks": "tasks",
    "new": "scaffold",
    "write_leaderboard": "boards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lensbench' has no attribute {name!r}")
    return getattr(import_module(f"lensbench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
