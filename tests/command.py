"""The command line as a user calls it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "lensbench"]


def lensbench(*arguments: object, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LENSBENCH_CACHE": str(cache or cwd / "cache"), "COLUMNS": "100"}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


def refused(done: subprocess.CompletedProcess[str], status: int) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("lensbench: ")]
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("lensbench: ")
