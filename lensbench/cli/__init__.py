"""The command line. Each command checks what it was given and calls one public function."""

# The order of these is that of the commands in `lensbench --help`.
from lensbench.cli import evaluating, showing, judging, calibrating, implanting, finetuning  # noqa: I001
from lensbench.cli import tuning, fitting, examining, analysing
from lensbench.cli.application import app, main

__all__ = [
    "analysing",
    "app",
    "calibrating",
    "evaluating",
    "examining",
    "finetuning",
    "fitting",
    "implanting",
    "judging",
    "main",
    "showing",
    "tuning",
]
