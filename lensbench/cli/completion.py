"""What a shell offers as the value of an option. Nothing in here imports torch."""

from collections.abc import Callable, Iterable

Complete = Callable[[str], list[str]]


def _models() -> Iterable[str]:
    from lensbench.models.builtin import BUILTIN
    from lensbench.models.sources import shipped_implants

    return [*BUILTIN, *(f"{base}+{name}" for base in BUILTIN for name in shipped_implants(base))]


def _tasks() -> Iterable[str]:
    from lensbench.tasks import find_tasks, load_task

    return [name for task in find_tasks() for name in (task, *(f"{task}/{one}" for one in load_task(task).relations))]


def _inspectors() -> Iterable[str]:
    from lensbench.inspectors.catalog import find_inspectors

    return find_inspectors()


def _baselines() -> Iterable[str]:
    from lensbench.baselines.spec import find_baselines

    return ["all", "none", *find_baselines()]


def _sites() -> Iterable[str]:
    from lensbench.tasks import SITES

    return SITES


def _layers() -> Iterable[str]:
    return ("all", "last", "stride:2", "stride:3", "stride:4")


def _one(known: Callable[[], Iterable[str]]) -> Complete:
    """Complete one name."""
    return lambda incomplete: [name for name in known() if name.startswith(incomplete)]


def _several(known: Callable[[], Iterable[str]]) -> Complete:
    """Complete the last of several names with commas between."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = set(before.split(","))
        return [f"{before}{comma}{name}" for name in known() if name.startswith(last) and name not in given]

    return complete


model, task = _one(_models), _one(_tasks)
COMPLETE: dict[str, Complete] = {
    **dict.fromkeys(("model", "verbalizer", "unplanted", "twin", "reference"), model),
    "tasks": _several(_tasks),
    "inspectors": _several(_inspectors),
    "baselines": _several(_baselines),
    "sites": _several(_sites),
    "layers": _several(_layers),
    "device": _one(lambda: ("auto", "cpu", "cuda", "mps")),
    "dtype": _one(lambda: ("auto", "float32", "bfloat16", "float16", "float64")),
}
"""Option → how its value is completed."""
