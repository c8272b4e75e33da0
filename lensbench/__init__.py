"""Which method reads what in a language model, at which layer, and is it reading the model or only the input.

The names below are stable. They are imported when first used, so that `import lensbench` does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensbench.evaluation import evaluate
    from lensbench.evidence import Evidence, NotApplicableError, Scores, Training
    from lensbench.inspectors.base import Inspector
    from lensbench.model.loading import load_model
    from lensbench.run import Run, load_run
    from lensbench.tasks import load_task

__version__ = version("lensbench")
__all__ = [
    "Evidence",
    "Inspector",
    "NotApplicableError",
    "Run",
    "Scores",
    "Training",
    "evaluate",
    "load_model",
    "load_run",
    "load_task",
]

_HOMES = {
    "Evidence": "evidence",
    "Inspector": "inspectors.base",
    "NotApplicableError": "evidence",
    "Run": "run",
    "Scores": "evidence",
    "Training": "evidence",
    "evaluate": "evaluation",
    "load_model": "model.loading",
    "load_run": "run",
    "load_task": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lensbench' has no attribute {name!r}")
    return getattr(import_module(f"lensbench.{_HOMES[name]}"), name)
