"""What the benchmarks share: the model and prompts, interleaved timing, comparison of outputs, and tables."""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.sources import resolve
from lensbench.tasks import Item, load_task

MODEL = "smollm2-135m"
PEERS = Path(__file__).resolve().parent / "peers"
SHORT_PROMPT = "The capital of {subject} is"
LONG_PROMPT = (
    "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational major "
    "appliance and consumer electronics corporation, Paris: Capital city of France, {subject}"
)
# How far log-probabilities in fp32 may lie apart where batches and shortcuts differ.
LOG_PROB_TOLERANCE = 1e-3


def options(doc: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each side; medians are printed")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not for figures")
    return parser


def machine() -> str:
    """Describe the machine and the versions that times depend on."""
    return (
        f"{_processor()}, {psutil.cpu_count(logical=False)} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, fp32"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load() -> LanguageModel:
    """Load the built-in model as lensbench does."""
    return load_model(MODEL)


def model_folder() -> str:
    """Return the folder of the built-in model, for packages that load it themselves."""
    return str(resolve(MODEL).location)


def source_items(count: int) -> tuple[Item, ...]:
    """Return items whose sources end with their subject, so that `the last token` is the read site for everybody."""
    items = load_task("attribute_extraction/country_capital").items("subject", "test")[:count]
    if len(items) < count:
        raise SystemExit(f"{count} items were asked for, and there are {len(items)}")
    assert all(item.source.endswith(item.subject) for item in items)
    return items


def choice_tokens(model: LanguageModel) -> list[int]:
    """Return the first tokens of one choice set of eight answers."""
    choices = load_task("attribute_extraction/country_capital").relations["country_capital"].choice_sets[0]
    return [model.tokens.answer_token(choice) for choice in choices]


@dataclass(frozen=True)
class Timing:
    """The seconds of several runs of one side, and what its last run returned."""

    seconds: tuple[float, ...]
    result: Any

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3g} s ({min(self.seconds):.3g} to {max(self.seconds):.3g})"


def interleaved(sides: Mapping[str, Callable[[], tuple[float, Any]]], repeats: int) -> dict[str, Timing]:
    """Run the sides in turns, each turn beginning with another, so that a slow spell of the machine hits all of them.

    Args:
        sides: each returns its seconds and its result; see `clocked`.
        repeats: how many turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    names = list(sides)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            spent, results[name] = sides[name]()
            seconds[name].append(spent)
    return {name: Timing(tuple(seconds[name]), results[name]) for name in names}


def clocked(work: Callable[[], Any], scale: float = 1.0) -> Callable[[], tuple[float, Any]]:
    """Make a side of `interleaved` from work in this process.

    Args:
        work: what to time.
        scale: what the seconds are multiplied by, where the work is only a part of the whole.
    """

    def run() -> tuple[float, Any]:
        begun = time.perf_counter()
        result = work()
        return (time.perf_counter() - begun) * scale, result

    return run


class Peer(AbstractContextManager["Peer"]):
    """Another package in a process of its own, started once, that answers jobs (see peers/worker.py).

    Args:
        command: interpreter, script and arguments.
    """

    def __init__(self, *command: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        # stderr is passed on: what a peer complains about is for whoever runs the benchmark.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._read()["versions"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer {self._process.args} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Run a job; return its `seconds`, its `peak_bytes` above the loaded model, and its arrays."""
        out = Path(self._folder.name) / "result.npz"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job, "arguments": arguments, "out": str(out)}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        with np.load(out) as arrays:
            return answer | dict(arrays)

    def side(self, job: str, **arguments: Any) -> Callable[[], tuple[float, Any]]:
        """Make a side of `interleaved` from a job."""

        def run() -> tuple[float, Any]:
            answer = self.ask(job, **arguments)
            return answer["seconds"], answer

        return run

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def check(what: str, ours: Any, theirs: Any, tolerance: float = LOG_PROB_TOLERANCE) -> None:
    """Print how far two results lie apart, and stop where it is more than the tolerance."""
    off = float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())
    print(f"- {what}: largest difference {off:.1e} (tolerance {tolerance:.0e})")
    if not off <= tolerance:
        sys.exit(f"{what}: the outputs differ, so the times do not compare the same work")


def check_ranks(what: str, ours: Any, theirs: Any) -> None:
    """Print how many ranks differ, and stop where one does by more than rounding can explain.

    Tokens whose log-probabilities are equal up to rounding may change places: a hundredth of the ranks, by one in a
    hundred of the rank.
    """
    mine, other = np.asarray(ours, np.int64), np.asarray(theirs, np.int64)
    off = np.abs(mine - other)
    print(f"- {what}: {(off > 0).mean():.2%} of {off.size} ranks differ, at most by {off.max()}")
    if (off > 3 + 0.01 * mine).any():
        sys.exit(f"{what}: the ranks differ")


class Table:
    """A Markdown table, printed at the end."""

    def __init__(self, *columns: str) -> None:
        self._rows: list[Sequence[str]] = [columns, ["---"] * len(columns)]

    def add(self, *cells: object) -> None:
        """Add a row."""
        self._rows.append([str(cell) for cell in cells])

    def __str__(self) -> str:
        return "\n".join(f"| {' | '.join(row)} |" for row in self._rows)


def heading(title: str) -> None:
    """Print a title and the machine."""
    print(f"## {title}\n\n{machine()}\n", flush=True)
