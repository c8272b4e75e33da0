"""`lensbench plot`: figures of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, RunFolder, print_files
from lensbench.errors import UsageError
from lensbench.report.figure import figure_summaries

_FIGURES = " ".join(
    [
        "One figure for a paper. [default: layers and relations, PNG and SVG]",
        *(f"{name}: {text}" for name, text in figure_summaries().items()),
    ]
)
RULE, WIDTH = "fixed", "page"
Task = Annotated[str | None, typer.Option(help="With --figure: one task. [default: each]")]
Relation = Annotated[str | None, typer.Option(help="With --figure: one relation. [default: the mean of all]")]
Site = Annotated[str | None, typer.Option(help="With --figure: one read site. [default: each]")]


@app.command()
def plot(
    run: RunFolder,
    figure: Annotated[
        str | None,
        typer.Option(help=_FIGURES, show_default=False),
    ] = None,
    task: Task = None,
    relation: Relation = None,
    site: Site = None,
    inspector: Annotated[str | None, typer.Option(help="With grid, compare or headline: one method.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy_corrected, accuracy, or gap:QUESTION, such as gap:beats_text. [default: what decides]"
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="Which attempt counts: fixed, selected, oracle.")] = RULE,
    before: Annotated[Path | None, typer.Option(help="With compare: the other run, drawn dashed.")] = None,
    width: Annotated[str, typer.Option(help="column (3.3 inches), text (5.5), page (7.2), or inches.")] = WIDTH,
    title: Annotated[bool, typer.Option("--title/--no-title", help="Whether the figure has a title.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="A .pdf, .svg or .png file, or a folder. [default: RUN/plots]")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw figures of a run: PDF (fonts embedded), SVG or PNG. It needs no model.

    Examples: `lensbench plot reports/RUN`; `lensbench plot reports/RUN --figure gap --site subject --width column
    --out gap.pdf`; `lensbench plot reports/NEW --figure compare --before reports/OLD`
    """
    say_what_happens(quiet=quiet)
    from lensbench.report.view import METRICS
    from lensbench.report.writing import FigureRequest, check_asked, plot_run, write_figures
    from lensbench.results.summary import accuracy_column
    from lensbench.runs.run import PLOTS, load_run

    if figure is None:
        alone = {"rule": rule if rule != RULE else None, "width": width if width != WIDTH else None}
        _refuse_without_figure(task=task, relation=relation, site=site, inspector=inspector, before=before, **alone)
        loaded = load_run(run)
        shown = metric or accuracy_column(loaded.score)
        _write(lambda place: plot_run(loaded.summary, place, shown), out or run / PLOTS, as_json=as_json)
        return
    earlier = load_run(before) if before is not None else None
    asked = FigureRequest(
        figure,
        {"task": task, "relation": relation, "site": site, "metric": metric or METRICS[0], "rule": rule, "width": width,
         "title": title},
        inspector, earlier, (before.name if before is not None else "before", run.resolve().name),
    )  # fmt: skip
    check_asked(asked, out)
    loaded = load_run(run)
    asked.choice["metric"] = metric or accuracy_column(loaded.score)
    _write(lambda place: write_figures(loaded, asked, place), out or run / PLOTS, as_json=as_json)


def _refuse_without_figure(**options: object) -> None:
    """Refuse options that only single figures have."""
    from lensbench.report.figure import find_figures, with_option

    drawn = [name for name in find_figures() if name in figure_summaries()]
    for name, value in options.items():
        if value is not None:
            known = with_option(name) if name in ("inspector", "before") else drawn
            raise UsageError(f"--{name} applies to a single figure: add --figure {' or '.join(known)}")


def _write(draw: Callable[[Path], list[Path]], out: Path, *, as_json: bool) -> None:
    try:
        written = draw(out)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another") from None
    print_files(written, as_json=as_json)
