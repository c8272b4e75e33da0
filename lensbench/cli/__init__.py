"""The command line. Each command checks what it was given and calls one public function."""

# The order of these is that of the commands in `lensbench --help`.
from lensbench.cli import evaluating, showing, plotting, reporting, comparing, exporting, judging  # noqa: I001
from lensbench.cli import calibrating, implanting, finetuning
from lensbench.cli import inspecting, tuning, fitting, making, examining, analysing
from lensbench.cli.application import app, main

__all__ = [
    "analysing",
    "app",
    "calibrating",
    "comparing",
    "evaluating",
    "examining",
    "exporting",
    "finetuning",
    "fitting",
    "implanting",
    "inspecting",
    "judging",
    "main",
    "making",
    "plotting",
    "reporting",
    "showing",
    "tuning",
]
