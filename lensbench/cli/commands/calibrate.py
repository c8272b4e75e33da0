"""`lensbench calibrate`: test the methods on planted facts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from lensbench.cli.application import app, progress_of, say_what_happens
from lensbench.cli.options import Device, Dtype, Inspectors, Json, Offline, Quiet, names_in, print_json
from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.calibration.calibrate import Calibration
    from lensbench.calibration.findings import TrialFinding


@app.command()
def calibrate(
    inspectors: Inspectors = "patchscope,logit_lens,linear_probe",
    out: Annotated[Path, typer.Option(help="The calibration's folder; an existing calibration is resumed.")] = Path(
        "reports/calibration"
    ),
    model: Annotated[str, typer.Option(help="The model into which facts were planted.")] = "smollm2-135m",
    implants: Annotated[
        str | None, typer.Option(help="Names of shipped implants, or folders. [default: all that ship]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use only two implants, a sham and 100 permutations.")] = False,
    cheats: Annotated[bool, typer.Option(help="Whether to test that methods that cheat are caught.")] = True,
    limit: Annotated[int, typer.Option(help="Items for each relation; shipped implants have 64 names.")] = 64,
    permutations: Annotated[
        int | None,
        typer.Option(help="How often the facts are reshuffled; 0 for never. [default: 1000, or 100 with --quick]"),
    ] = None,
    readers: Annotated[
        str | None,
        typer.Option(help="Models of another architecture as additional verbalizers, for methods with a map."),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(help="Methods that must find the facts on every plain implant; otherwise the exit status is 1."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test methods on facts planted at a known layer, on absent facts, and the checks on methods that cheat.

    The exit status is 1 if a method claims a fact that is not there, or if a cheat passes.

    Example: `lensbench calibrate --inspectors my_module:MyLens --quick --out reports/my-calibration`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name
    from lensbench.results.run_file import RUN_FILE

    others = names_in(readers or "")
    for name in (model, *others):
        check_model_name(name, offline=offline)
    wanted, required = names_in(inspectors), names_in(require or "")
    if not wanted:
        raise UsageError(f"--inspectors {inspectors!r} is empty; name at least one method, such as patchscope")
    if missing := [name for name in required if name not in wanted]:
        raise UsageError(f"--require {missing[0]}: it is not among --inspectors {inspectors}; add it there")
    if limit < 1:
        raise UsageError(f"--limit {limit}: expected 1 or more")
    if permutations is not None and permutations < 0:
        raise UsageError(f"--permutations {permutations}: expected 0 or more")
    if (out / RUN_FILE).exists():
        raise UsageError(f"--out {out} is a run of `lensbench evaluate`; give the calibration a folder of its own")
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.calibration.calibrate import CalibrationSettings
    from lensbench.calibration.calibrate import calibrate as run

    settings: dict[str, Any] = {"device": device, "dtype": dtype, "offline": offline}
    count = (100 if quick else 1000) if permutations is None else permutations
    asked = CalibrationSettings(
        model, wanted, None if implants is None else names_in(implants), quick, cheats, limit, count, others, settings
    )
    result = run(asked, out, progress_of(quiet=quiet))
    print_json({**asdict(result), "problems": result.problems()}) if as_json else _show(result, out)
    weak = [name for name in required if result.power(name)[0] < result.power(name)[1]]
    problems = [
        *result.problems(),
        *(f"{name} found {result.power(name)[0]} of {result.power(name)[1]}" for name in weak),
    ]
    if problems:
        raise LensbenchError(f"the calibration failed: {'; '.join(problems)}")


def _show(result: "Calibration", out: Path) -> None:
    from lensbench.report.tables import print_table

    console = Console(soft_wrap=True)
    console.print(f"Facts planted in {result.model}, read by {result.model}", highlight=False, markup=False)
    for trial in dict.fromkeys(one.trial for one in result.findings):
        print_table(_table([one for one in result.findings if one.trial == trial]), console)
    for alarm in result.alarms:
        again = ", refitted each time" if alarm.refitted else ""
        console.print(
            f"{alarm.method} on {alarm.trial}, facts reshuffled {alarm.permutations} times{again}: privileged in "
            f"{alarm.rate:.3f} [{alarm.low:.3f}, {alarm.high:.3f}]", highlight=False, markup=False,
        )  # fmt: skip
    if result.cheats:
        cheats = Table(title="Methods that cheat", title_justify="left")
        for name in ("cheat", "caught by", "praised as"):
            cheats.add_column(name)
        for caught in result.cheats:
            cheats.add_row(caught.name, ", ".join(caught.by) or "nothing", ", ".join(caught.praised.values()) or "-")
        print_table(cheats, console)
    console.print(f"written to {out}", highlight=False, markup=False)


def _table(found: "list[TrialFinding]") -> Table:
    """One implant: a row a method and relation."""
    first = found[0]
    held = "nowhere" if first.kind == "sham" else "from layer " + ", then ".join(map(str, first.layers))
    table = Table(title=f"{first.trial} ({first.kind}): held {held}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("relation", "method", "emerges", "privileged", "best accuracy", "gap there"):
        table.add_column(name, no_wrap=True)
    for one in found:
        layer, low, high = one.emergence.layer, one.emergence.low, one.emergence.high
        emerges = "never" if layer is None else f"{layer} [{low}, {high}]"
        gap = "{:+.2f} (≥ {:+.2f})".format(*one.gap)
        best = f"{one.accuracy:.2f} at {one.best_layer}"
        table.add_row(one.relation, one.method, emerges, _spans(one.privileged, one.read) or "-", best, gap)
    return table


def _spans(layers: "tuple[int, ...]", read: "tuple[int, ...]") -> str:
    """Write layers as spans of those that were read: 8-20, 28."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and read.index(layer) == read.index(spans[-1][-1]) + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in spans)
