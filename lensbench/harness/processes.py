"""Processes that have met no method: each is given one, works for it, and ends.

They are forked from a server that has imported lensbench and nothing else, so that one is there in milliseconds. Where
a system cannot fork, each is an interpreter of its own.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import torch
from joblib import parallel_config

from lensbench.errors import LensbenchError
from lensbench.harness.mapped import Arrays
from lensbench.harness.passing import (
    Held,
    Receiver,
    ReplyReceiver,
    described_error,
    packed,
    restored_error,
)
from lensbench.models.language_model import LanguageModel

FORKS = hasattr(os, "fork") and hasattr(socket, "send_fds")
# What the server imports of what this process has imported: never a method of somebody else.
SHARED = ("lensbench.", "sklearn.", "scipy.", "transformers.models.")
_COMMAND = "import sys; sys.path[:] = {path!r}; from lensbench.harness.processes import {function}; {function}({given})"


class Process:
    """A process of its own, for one method.

    Args:
        arrays: where large arrays are put for it; None sends them in messages.
        without_blocks: the model that it gets without blocks.
    """

    def __init__(self, arrays: Arrays | None = None, without_blocks: LanguageModel | None = None) -> None:
        self._arrays = None if arrays is None else Arrays(arrays)
        self._without_blocks = without_blocks
        self._held = Held()
        self._reader, self._writer, self._interpreter = _fork() if FORKS else _spawn()
        environment = dict(os.environ)
        if self._arrays is not None:
            environment["TMPDIR"] = str(self._arrays.new_folder())
        settings = {"threads": torch.get_num_threads(), "path": sys.path, "environment": environment}
        self._send({**settings, "folder": str(Path.cwd())})

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """Call a function of lensbench there, and return what it returns.

        Raises:
            LensbenchError: the process has ended.
        """
        try:
            self._send(("call", function, given))
            while True:
                kind, *rest = ReplyReceiver(self._reader).load()
                if kind == "done":
                    return rest[0]
                if kind == "failed":
                    *error, trace = rest
                    restored = restored_error(*error)
                    restored.add_note(f"in a process of its own:\n{trace}")
                    raise restored
                self._answer(*rest)
        except (EOFError, BrokenPipeError, ConnectionError):
            raise LensbenchError(
                "the process of the method ended before it had answered: it was killed, or memory ran out"
            ) from None

    def _answer(self, number: int, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            found = self._held.answer(number, name, given, named)
        except Exception as error:  # whatever it is, the method gets it
            self._send(("failed", *described_error(error)))
        else:
            self._send(("told", found))

    def _send(self, message: Any) -> None:
        self._writer.write(packed(message, self._arrays, self._held, self._without_blocks))
        self._writer.flush()

    def close(self) -> None:
        """End the process."""
        for file in (self._writer, self._reader):
            with suppress(OSError):
                file.close()
        if self._interpreter is not None:
            self._interpreter.wait()
        if self._arrays is not None:
            self._arrays.close()


Ends = tuple[BufferedIOBase, BufferedIOBase, "subprocess.Popen[bytes] | None"]
_servers: list["_Server"] = []


class _Server:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        modules = [name for name in sys.modules if name.startswith(SHARED) and not name.startswith("lensbench._")]
        command = _COMMAND.format(path=sys.path, function="serve", given=f"{theirs.fileno()}, {modules!r}")
        self._interpreter = subprocess.Popen(
            [sys.executable, "-c", command], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends this process, and the others see that it has ended
        )  # fmt: skip
        theirs.close()

    @property
    def lives(self) -> bool:
        return self._interpreter.poll() is None

    @property
    def pid(self) -> int:
        return self._interpreter.pid

    def fork(self) -> Ends:
        own, theirs = socket.socketpair()
        with own, theirs:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            return own.makefile("rb"), own.makefile("wb"), None

    def close(self) -> None:
        self._control.close()
        self._interpreter.wait()


def _fork() -> Ends:
    if not (_servers and _servers[-1].lives):
        close_server()
        _servers.append(_Server())
    return _servers[-1].fork()


def server_pid() -> int | None:
    """Return the process number of the server; None where there is none."""
    return _servers[-1].pid if _servers else None


@atexit.register
def close_server() -> None:
    """End the server; the next process starts another."""
    while _servers:
        _servers.pop().close()


def _spawn() -> Ends:
    command = _COMMAND.format(path=sys.path, function="work_on_pipes", given="")
    made = subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return made.stdout, made.stdin, made  # type: ignore[return-value]


def serve(control: int, modules: Iterable[str]) -> NoReturn:
    """Fork a process for each socket that comes, until the other end is closed. Runs in the server."""
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    gc.collect()
    gc.freeze()  # so that the collector of a process does not copy the pages that all share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(fileno=control) as commands:
        while True:
            asked, (*ends,), _, _ = socket.recv_fds(commands, 1, 1)
            if not asked:
                os._exit(0)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                atexit._clear()  # what the server has begun, the server ends
                commands.close()
                with socket.socket(fileno=ends[0]) as own:
                    work(own.makefile("rb"), own.makefile("wb"))
                _end()
            os.close(ends[0])


def _end() -> NoReturn:
    """End this process, and what a method has begun in it; runs in a process that was forked.

    The interpreter is not taken apart, which would copy what this process shares with the server, for .4 s.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a method may have closed it
            stream.flush()
    os._exit(0)


def work_on_pipes() -> None:
    """Work for a method over standard input and output; what it prints goes to the error stream."""
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    work(reader, writer)


def work(reader: BufferedIOBase, writer: BufferedIOBase) -> None:
    """Do what is called for, until the other end is closed. Runs in a method's process."""
    models: dict[Path, LanguageModel] = {}

    def send(message: Any) -> None:
        writer.write(packed(message))
        writer.flush()

    def ask(number: int, name: str, *given: Any, **named: Any) -> Any:
        send(("ask", number, name, given, named))
        kind, *rest = receive()
        if kind == "failed":
            raise restored_error(*rest)
        return rest[0]

    def receive() -> Any:
        return Receiver(reader, models, ask).load()

    # A pool of further processes would take longer to start than a fit takes.
    with suppress(EOFError, BrokenPipeError, ConnectionError), parallel_config(backend="sequential"):
        _settle(receive())
        while True:
            try:
                _, function, given = receive()
                send(("done", function(*given)))
            except (EOFError, ConnectionError):
                return
            except Exception as error:  # whatever a method raises
                send(("failed", *described_error(error), traceback.format_exc()))


def _settle(settings: dict[str, Any]) -> None:
    """Take over what the other process has set since the server began."""
    sys.path[:] = settings["path"]
    os.environ.clear()
    os.environ.update(settings["environment"])
    tempfile.tempdir = None  # found again: each process has its own, for as long as the run lasts
    os.chdir(settings["folder"])
    # How a matrix product is cut into threads may show in its last digits.
    torch.set_num_threads(settings["threads"])
