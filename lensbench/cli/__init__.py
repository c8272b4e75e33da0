"""The command line. Each command checks what it was given and calls one public function."""

# The order of these is that of the commands in `lensbench --help`.
from lensbench.cli import evaluating, showing, judging, tuning, fitting, examining, analysing  # noqa: I001
from lensbench.cli.application import app, main

__all__ = ["analysing", "app", "evaluating", "examining", "fitting", "judging", "main", "showing", "tuning"]
