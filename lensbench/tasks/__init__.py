"""Tasks: what is asked of a model, as data. A task is a folder; an item is one question with one gold answer.

Nothing in here imports torch, so that names and files are checked before a model is loaded.
"""

from lensbench.tasks.facts import N_FOLDS, SITES, Fact, Relation, Site, fold_of
from lensbench.tasks.files import TaskError
from lensbench.tasks.items import Item, Split, Task
from lensbench.tasks.load import data_root, find_tasks, load_task, load_tasks

__all__ = [
    "N_FOLDS",
    "SITES",
    "Fact",
    "Item",
    "Relation",
    "Site",
    "Split",
    "Task",
    "TaskError",
    "data_root",
    "find_tasks",
    "fold_of",
    "load_task",
    "load_tasks",
]
