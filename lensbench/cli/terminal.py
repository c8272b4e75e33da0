"""What the command line shows of a run, of a plan, of the cache."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

from lensbench.report.sentences import result_sentences
from lensbench.report.tables import brief_table, comparison_rows, print_rows, print_table, result_table, warnings
from lensbench.report.wording import readable
from lensbench.results.summary import rows_of
from lensbench.utils.cache import cache_path, contents
from lensbench.utils.progress import duration

if TYPE_CHECKING:
    from lensbench.evaluation.dry_run import DryRun
    from lensbench.explore.tune import Tuned
    from lensbench.runs.run import Run

# What the result table takes without wrapping.
WIDE = 100
# If at least this share of answers begins with a very short token, the terminal says so.
SHORT = 0.1


def show_run(run: "Run") -> None:
    """Print a sentence for each task and site, and one line for each method there."""
    console = Console()
    if not run.done:
        _show_unanswered(run, console)
        return
    for told in result_sentences(run.best, run.info, run.summaries):
        where = f"{readable(told.task)}, read at {told.site}: "
        console.print(where + told.sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    print_table(brief_table(run.best), console)
    for warning in warnings(run.best):
        console.print(warning, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    _show_failed_checks(run, console)
    more = f"more: lensbench report {run.path} (a page), lensbench verdict {run.path} (every relation)"
    console.print(more, highlight=False, markup=False, soft_wrap=True)


def show_details(run: "Run") -> None:
    """Print the verdicts on every relation, what is known of the methods, and what could not be answered."""
    console = Console()
    if run.done:
        narrow = console.is_terminal and console.width < WIDE
        print_table(result_table(run.best, narrow=narrow), console)
        if len(run.comparisons):
            console.print("Methods compared, each at its best layer, over what both answered", style="bold")
            print_rows(*comparison_rows(run.comparisons))
    for relation, share in run.info.get("short_answers", {}).items():
        if share >= SHORT:
            said = f"{share:.0%} of the answers begin with a token of one or two letters, which is all that is scored"
            console.print(f"{relation}: {said}", highlight=False, markup=False, soft_wrap=True)
    for name, found in run.calibrations.items():
        known = f"not calibrated; try `lensbench calibrate --inspectors {name}`" if found is None else found.in_words()
        console.print(f"{name}: {known}", highlight=False, markup=False, soft_wrap=True)
    _show_failed_checks(run, console)
    _show_unanswered(run, console)


def _show_failed_checks(run: "Run", console: Console) -> None:
    for name, checked in run.checks.items():
        for failed in checked.failed:
            console.print(f"{name} fails {failed}", highlight=False, markup=False, soft_wrap=True)


def _show_unanswered(run: "Run", console: Console) -> None:
    for what, reason in run.unanswered.items():
        console.print(f"not applicable: {what}: {reason}", highlight=False, markup=False, soft_wrap=True)


def run_as_json(run: "Run") -> dict[str, Any]:
    """A run's best layers, and what could not be answered, as an object for JSON."""
    return {
        "run": str(run.path),
        "best": rows_of(run.best) if run.done else [],
        "totals": "where relation is all, accuracies are means over relations of (accuracy - chance) / (1 - chance)",
        "calibration": {name: found and found.in_words() for name, found in run.calibrations.items()},
        "checks": {name: checked.entry() for name, checked in run.checks.items()},
        "not_applicable": run.unanswered,
        "failed": run.failed,
    }


def plan_as_json(planned: "DryRun") -> dict[str, Any]:
    """A plan, as an object for JSON: seconds are None for cells that are done, sizes are in bytes."""
    whole = planned.estimate
    cells = [
        {"task": cell.task, "site": cell.site, "inspector": cell.inspector, "baseline": cell.baseline,
         "seconds": whole.cells.get(cell)}
        for cell in planned.cells
    ]  # fmt: skip
    return {
        "run": str(planned.out), "cells": cells, "missing": len(planned.missing), "seconds": whole.seconds,
        "memory": whole.memory, "disk": whole.disk,
    }  # fmt: skip


def tuned_as_json(tuned: "Tuned") -> dict[str, Any]:
    """What a search came to on held-out folds, and the best configurations, as an object for JSON."""
    return {**run_as_json(tuned.run), "best": rows_of(tuned.best), "chosen": rows_of(tuned.chosen)}


def show_tuned(tuned: "Tuned") -> None:
    """Print what a search came to on held-out folds, and the best configurations."""
    console = Console()
    narrow = console.is_terminal and console.width < WIDE
    print_table(result_table(tuned.best, narrow=narrow), console)
    names = ("relation", "site", "layer", "prompt", "placeholder", "target_layer", "amplifier", "accuracy")
    rows = [
        (*(str(row[name]) for name in names[:-1]), f"{row['accuracy']:.2f}") for row in tuned.chosen.to_dict("records")
    ]
    print_rows((*names[:-1], "on all items"), rows)


def show_plan(planned: "DryRun") -> None:
    """Print the cells of a plan, those already done, and what the others will take."""
    seconds = planned.estimate.cells
    rows = [
        (cell.task, cell.site, cell.inspector, cell.baseline, f"{seconds[cell]:.0f} s" if cell in seconds else "done")
        for cell in planned.cells
    ]
    print_rows(("task", "site", "inspector", "baseline", ""), rows)
    done = len(planned.cells) - len(planned.missing)
    whole = planned.estimate
    lines = (
        f"{len(planned.cells)} cells, {done} done before, in {planned.out}",
        f"about {duration(whole.seconds)} on this machine (learning {whole.preparing:.0f} s, finishing "
        f"{whole.finishing:.0f} s), {whole.memory / 2**30:.1f} GB of memory, {whole.disk / 1e6:.0f} MB of disk",
    )
    for line in lines:
        Console(soft_wrap=True).print(line, highlight=False, markup=False)


def show_cache() -> None:
    """Print what the cache holds."""
    rows = [(kind, str(number), f"{size / 1e6:.0f} MB") for kind, (number, size) in contents().items()]
    print_rows(("kept", "number", "size"), rows)
    Console(soft_wrap=True).print(f"in {cache_path()}", highlight=False, markup=False)
