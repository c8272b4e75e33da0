"""Which method reads what in a language model, at which layer, and is it reading the model or only the input.

The names below are stable. They are imported when first used, so that `import lensbench` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensbench.errors import LensbenchError, UsageError
    from lensbench.evaluation.evaluate import evaluate
    from lensbench.explore.prompt import describe_token, inspect
    from lensbench.explore.scaffold import new
    from lensbench.inspectors.base import Inspector
    from lensbench.inspectors.evidence import Evidence, NotApplicableError, Training
    from lensbench.inspectors.scores import Scores
    from lensbench.inspectors.target import Target
    from lensbench.models.language_model import LanguageModel
    from lensbench.models.loading import load_model
    from lensbench.runs.compare import Comparison, compare
    from lensbench.runs.export import export
    from lensbench.runs.pages import write_leaderboard
    from lensbench.runs.run import Run, load_run
    from lensbench.tasks import Item, Task, find_tasks, load_task, load_tasks

__version__: str
__all__ = [
    "Comparison",
    "Evidence",
    "Inspector",
    "Item",
    "LanguageModel",
    "LensbenchError",
    "NotApplicableError",
    "Run",
    "Scores",
    "Target",
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
    "Comparison": "runs.compare",
    "Evidence": "inspectors.evidence",
    "Inspector": "inspectors.base",
    "Item": "tasks",
    "LanguageModel": "models.language_model",
    "LensbenchError": "errors",
    "NotApplicableError": "inspectors.evidence",
    "Run": "runs.run",
    "Scores": "inspectors.scores",
    "Target": "inspectors.target",
    "Task": "tasks",
    "Training": "inspectors.evidence",
    "UsageError": "errors",
    "compare": "runs.compare",
    "describe_token": "explore.prompt",
    "evaluate": "evaluation.evaluate",
    "export": "runs.export",
    "find_tasks": "tasks",
    "inspect": "explore.prompt",
    "load_model": "models.loading",
    "load_run": "runs.run",
    "load_task": "tasks",
    "load_tasks": "tasks",
    "new": "explore.scaffold",
    "write_leaderboard": "runs.pages",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes as long to import as all else that is imported here

        return version("lensbench")
    if name not in _HOMES:
        raise AttributeError(f"module 'lensbench' has no attribute {name!r}")
    return getattr(import_module(f"lensbench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
