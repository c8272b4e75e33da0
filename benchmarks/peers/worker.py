"""What the workers share: they answer jobs, one JSON line each, in an environment of their own; no lensbench here.

A job is `{"job": name, "arguments": {...}, "out": path}`. Its work is timed and its memory watched; the arrays that
are then read from its result, untimed, go to `out`.
"""

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Job = tuple[Callable[..., Any], Callable[..., dict[str, Any]]]


def _status(key: str) -> int:
    """Return a size of this process that Linux keeps, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def watched(work: Callable[[], Any]) -> tuple[Any, float, int | None]:
    """Run work; return its result, its seconds, and the peak of resident memory above what there was before."""
    gc.collect()
    before = None
    # Writing 5 there makes Linux forget the highest resident size so far; elsewhere the peak is not measured.
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = _status("VmRSS:")
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    return result, seconds, None if before is None else _status("VmHWM:") - before


def serve(jobs: Mapping[str, Job], packages: tuple[str, ...]) -> None:
    """Answer jobs until the input ends.

    Args:
        jobs: by name, what is timed, and what then reads arrays from its result; both get the arguments.
        packages: whose versions are announced first.
    """
    # Packages print what they like: the answers keep the real standard output, everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    versions = {package: importlib.metadata.version(package) for package in packages}
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        work, read = jobs[asked["job"]]
        arguments = asked["arguments"]
        result, seconds, peak = watched(lambda work=work, arguments=arguments: work(**arguments))
        np.savez(asked["out"], **read(result, **arguments))
        del result
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answers, flush=True)
