"""The command line as a user calls it: in a process of its own, which is forked where that can be done.

A forked process has torch and transformers imported already, which takes some seconds each time otherwise. What else it
inherits of a test is undone: output, logging, warnings. `tests/cli/test_cli.py` compares it with a process that is
started.
"""

import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

import lensbench as lensbench_package
import lensbench.cli

COMMAND = [sys.executable, "-m", "lensbench"]


def lensbench(
    *arguments: object, cwd: Path, cache: Path | None = None, start: bool = not hasattr(os, "fork")
) -> subprocess.CompletedProcess[str]:
    """Run a command.

    Args:
        arguments: the command's.
        cwd: where it runs.
        cache: its LENSBENCH_CACHE; by default a folder in `cwd`.
        start: whether a new interpreter is started.
    """
    environment = {**os.environ, "LENSBENCH_CACHE": str(cache or cwd / "cache"), "COLUMNS": "100"}
    command = [*COMMAND, *map(str, arguments)]
    if start:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        _import_all()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _run_and_exit(command, cwd, environment, out, err)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())


@cache
def _import_all() -> None:
    """Import what commands import when they need it, once for all that are forked."""
    _ = lensbench_package.cli.app  # all commands, in their order
    for module in pkgutil.walk_packages(lensbench_package.__path__, "lensbench."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("datasets", "sklearn.linear_model", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)


def _run_and_exit(command: list[str], cwd: Path, environment: dict[str, str], out: IO[str], err: IO[str]) -> NoReturn:
    status = 1
    try:
        os.chdir(cwd)
        os.environ.update(environment)
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115 - closed with the process
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
        warnings.resetwarnings()
        importlib.invalidate_caches()
        sys.path[:] = [str(Path(entry).absolute()) if entry else entry for entry in sys.path]
        sys.argv = ["lensbench", *command[3:]]
        from lensbench.cli import main

        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # what a process of its own would end with
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def refused(done: subprocess.CompletedProcess[str], status: int) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("lensbench: ")]
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("lensbench: ")
