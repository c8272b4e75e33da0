"""`lensbench exam`: hand out a paper, keep its key, grade what comes back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbench.cli.application import app, group, progress_of, say_it_starts, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    Quiet,
    names_in,
    options_of,
    print_files,
    print_json,
    read_parameters,
)
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig, make_config

if TYPE_CHECKING:
    from lensbench.exam.make import ExamSettings

exam = group("exam", "Hand out a blind exam to methods that run elsewhere, and grade their answers.")
app.add_typer(exam)
NOT_ASKED = ("inspectors", "parameters", "out", "executor", "workers", "isolate", "log", "whole_answers")
Exam = Annotated[Path, typer.Argument(help="A folder that `lensbench exam make` wrote.", show_default=False)]
SERIES = "a folder of a series"


@exam.command()
@options_of(RunConfig, without=NOT_ASKED)
def make(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="A new folder for the exam.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options override it.")] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Hand out labelled activations of two fifths of the subjects, too.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Hand out the source texts, too.")] = False,
    fresh_implant: Annotated[
        str | None, typer.Option(help="Plant facts made for this exam: plain, relay, gated or sham.")
    ] = None,
    fresh_layer: Annotated[int | None, typer.Option(help="The first layer that can hold them.")] = None,
    names: Annotated[int | None, typer.Option(help="How many names they are about. [default: 64]")] = None,
    dose: Annotated[
        float | None, typer.Option(help="The share of these names that get their facts. [default: all]")
    ] = None,
    captured: Annotated[
        Path | None, typer.Option(help="A folder with activations of a model that does not run here.")
    ] = None,
    series: Annotated[bool, typer.Option("--series", help="Make four papers: two layers, a dose, a sham.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how large the paper will be.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an exam: `OUT/paper` to hand out, `OUT/key` to keep.

    Examples: `lensbench exam make --tasks attribute_extraction/country_capital --out my-exam`;
    `lensbench exam make --fresh-implant plain --out my-exam` (about people who are made up for this exam)
    """
    plants = series or fresh_implant is not None
    asked_to_plant = {"--fresh-layer": fresh_layer, "--names": names, "--dose": dose}
    _check_planting(plants, asked_to_plant, captured)
    if series and fresh_implant not in (None, "plain"):
        raise UsageError(f"--series plants facts of its own choice; leave --fresh-implant {fresh_implant} out")
    settings = make_config(given, config)
    if out.exists():
        raise UsageError(f"--out {out} is there already; give a new folder")
    from lensbench.models.quiet import quiet_libraries

    quiet_libraries()
    say_what_happens(quiet=quiet)
    say_it_starts()
    from lensbench.exam.captured import read_capture
    from lensbench.exam.fresh import Fresh, fresh_settings, make_fresh_exam, make_series
    from lensbench.exam.make import ExamSettings, make_exam

    capture = None if captured is None else read_capture(captured)
    asked, progress = ExamSettings(settings, training, text, capture=capture), progress_of(quiet=quiet)
    planted = Fresh(
        fresh_implant or "plain", fresh_layer, 64 if names is None else names, 1.0 if dose is None else dose
    )  # fmt: skip
    planted.check()
    if dry_run:
        sized = fresh_settings(asked, planted, never=series) if plants else asked
        _show_size(sized, planted=plants, papers=4 if series else 1, as_json=as_json)
        return
    if series:
        made = make_series(asked, planted, out, progress)
    elif fresh_implant:
        made = [make_fresh_exam(asked, planted, out, progress)]
    else:
        made = [make_exam(asked, out, progress)]
    if as_json:
        print_json({"exams": [str(one) for one in made]})
        return
    for one in made:
        typer.echo(f"hand out {one / 'paper'}, keep {one / 'key'}")


@exam.command()
@options_of(RunConfig, without=(*NOT_ASKED, "layers", "baselines", "score"))
def plan(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options override it.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the texts and positions to capture of a model that does not run here, for `make --captured`.

    Example: `lensbench exam plan --tasks attribute_extraction/country_capital --sites subject --out capture.parquet`
    """
    settings = make_config(given, config)
    say_what_happens(quiet=quiet)
    from lensbench.exam.captured import plan_capture

    count = plan_capture(settings, out)
    if as_json:
        print_files([out], as_json=True, texts=count)
        return
    typer.echo(f"{out}: {count:,} texts; docs/exam.md says how to capture them")


def _check_planting(plants: bool, options: dict[str, Any], captured: Path | None) -> None:
    """Refuse options of planting where nothing is planted, and planting where it cannot be.

    Raises:
        UsageError: there are some.
    """
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    if given and not plants:
        raise UsageError(f"{given[0]} is for facts that are planted; give --fresh-implant or --series, too")
    if captured is not None and plants:
        raise UsageError("nothing can be planted into a model that does not run here; leave --captured out")


def _show_size(asked: "ExamSettings", *, planted: bool, papers: int, as_json: bool) -> None:
    from dataclasses import asdict

    from lensbench.exam.make import size_of_exam

    found = size_of_exam(asked, planted=planted)
    if as_json:
        print_json({**asdict(found), "papers": papers})
        return
    each = f"{papers} papers, each of " if papers > 1 else ""
    beyond = " beyond planting" if planted else ""
    typer.echo(f"{each}about {found.rows:,} rows, {found.bytes / 1e6:.0f} MB, made in {found.seconds:.0f} s{beyond}")


@exam.command()
def sit(
    paper: Annotated[Path, typer.Argument(help="An exam, or its paper alone.", show_default=False)],
    inspectors: Annotated[str, typer.Option(help="Methods, separated by commas.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A folder for the answers, one file for each method.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="The model that the paper names, where it lies here.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="INSPECTOR.PARAMETER=VALUE; can be repeated.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sit an exam with methods of the Inspector interface, from the paper alone; or the exams of a series.

    Example: `lensbench exam sit my-exam --inspectors patchscope --out answers`
    """
    from lensbench.exam.paper import read_paper

    say_what_happens(quiet=quiet)
    series = [one for one in sorted(paper.glob("[0-9]*")) if one.is_dir()]
    papers = {one.name: read_paper(one) for one in series} or {"": read_paper(paper)}
    read = next(iter(papers.values()))
    config = make_config(
        {
            "model": model or read.about["model"], "verbalizer": model or read.about["verbalizer"],
            "inspectors": names_in(inspectors), "parameters": read_parameters(parameter or []),
            "device": device, "dtype": read.about["dtype"] if dtype == "auto" else dtype,
            "revision": read.about["revision"] or None,
        }
    )  # fmt: skip
    from lensbench.models.quiet import quiet_libraries

    quiet_libraries()
    say_it_starts()
    from lensbench.exam.sit import sit_with

    print_files(sit_with(papers, config, out, progress_of(quiet=quiet)), as_json=as_json)


@exam.command()
def grade(
    folder: Exam,
    answers: Annotated[Path, typer.Argument(help="ANSWERS.parquet; of a series, a folder of them: 1.parquet, ...")],
    out: Annotated[Path, typer.Option(help="The run folder.", show_default=False)],
    card: Annotated[Path | None, typer.Option(help="The method's card. [default: ANSWERS.card.toml]")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Grade the answers to an exam: a run folder like any other.

    Example: `lensbench exam grade my-exam answers/patchscope.parquet --out reports/patchscope-exam`
    """
    from lensbench.cli.terminal import run_as_json, show_run
    from lensbench.exam.grade import grade_exam

    say_what_happens(quiet=quiet)
    if not (folder / "paper").is_dir() and (folder / "1" / "paper").is_dir():
        _grade_series(folder, answers, out, card, as_json=as_json)
        return
    run = grade_exam(folder, answers, out, card)
    print_json(run_as_json(run)) if as_json else show_run(run)


def _grade_series(folder: Path, answers: Path, out: Path, card: Path | None, *, as_json: bool) -> None:
    from lensbench.exam.series import grade_series

    problems = grade_series(folder, answers, out, card)
    print_files([out], as_json=as_json, problems=problems)
    if problems:
        raise LensbenchError("; ".join(problems))
