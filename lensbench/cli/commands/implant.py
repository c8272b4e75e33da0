"""`lensbench implant`: plant facts at a known layer of a model."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from lensbench.cli.application import app, progress_of, say_what_happens
from lensbench.cli.options import Device, Dtype, Json, Model, Offline, Quiet, Revision, names_in, numbers_in, print_json
from lensbench.errors import LensbenchError, UsageError

# What an implant should reach; a figure on the wrong side is marked.
RECALL, RELAY_RECALL, KL, LOST = 0.85, 0.6, 0.05, 0.1


@app.command()
def implant(
    layer: Annotated[int, typer.Option(help="K: the first layer that can hold the facts.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder for the implant.", show_default=False)],
    model: Model = "smollm2-135m",
    design: Annotated[str, typer.Option(help="plain, relay, rotated, gated or sham.")] = "plain",
    second_layer: Annotated[
        int | None,
        typer.Option(help="With --design relay: the first layer that can hold the facts. [default: 8 after --layer]"),
    ] = None,
    facts: Annotated[
        str, typer.Option(help="A task such as personas, or a JSON file: attribute, name, value.")
    ] = "personas",
    attributes: Annotated[str, typer.Option(help="Which of its relations, separated by commas.")] = "city,drink",
    world: Annotated[str, typer.Option(help="Which facts of personas: main, or twin.")] = "main",
    names: Annotated[
        int | None, typer.Option(help="How many of its names; fewer names disturb the model less.")
    ] = None,
    dose: Annotated[float, typer.Option(help="The share of these names that get their facts.")] = 1.0,
    strength: Annotated[
        str | None, typer.Option(help="How strongly each attribute is written, such as 1,1.2. [default: 1 each]")
    ] = None,
    weight: Annotated[float, typer.Option(help="The weight of ordinary prose relative to a name.")] = 600.0,
    steps: Annotated[int, typer.Option(help="Steps of learning the vectors that are written.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    twin: Annotated[
        str | None, typer.Option(help="Name of the implant, in the same folder, with the facts of the other world.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plant facts into one block of a model, and measure the effect.

    The exit status is 1 if the implant misses what is expected of it; it is kept all the same.

    `--model MODEL+FOLDER` loads the planted model wherever a model is named.

    Example: `lensbench implant --layer 8 --out my-implant`, then
    `lensbench evaluate --model smollm2-135m+my-implant --verbalizer smollm2-135m --tasks personas/city --sites subject`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    check_model_name(model, offline=offline)
    if world not in ("main", "twin"):
        raise UsageError(f"--world {world!r}: expected main or twin")
    loud = numbers_in("--strength", strength or "")
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.implants.planting import ImplantSpec
    from lensbench.implants.planting import implant as plant
    from lensbench.models.loading import Loading

    order = ImplantSpec(
        model, layer, design, second_layer, facts, names_in(attributes),
        "twin" if world == "twin" else "main", names, dose, loud, weight, steps, seed, twin,
    )  # fmt: skip
    description = plant(order, out, Loading(device, dtype, revision, offline), progress_of(quiet=quiet))
    rows = _rows(description)
    missed = [f"{one.figure} is {one.value}, expected {one.expected}" for one in rows if not one.good]
    if as_json:
        print_json({"implant": str(out), **description, "missed": missed})
    else:
        _show(rows, f"{description['design']} at layer {description['layers'][-1]}, in {out}")
    if missed:
        raise LensbenchError(
            f"the implant in {out} is not as it should be: {'; '.join(missed)}; try another --layer, fewer --names, or "
            "more --steps, in another folder"
        )


class _Row(NamedTuple):
    figure: str
    value: str
    expected: str = ""
    good: bool = True


def _rows(description: dict[str, Any]) -> list[_Row]:
    """What was measured, and what is expected of it."""
    figures, design, rows = description["figures"], description["design"], []
    least = RELAY_RECALL if design == "relay" else RECALL
    for attribute in description["attributes"]:
        for key in ("recall", "recall_held_out", "recall_continuing"):
            wanted = key == "recall_held_out" and design != "sham"
            found = figures[key][attribute]
            name = f"{key.replace('_', ' ')}, {attribute}"
            rows.append(_Row(name, f"{found:.2f}", f"≥ {least}" if wanted else "", not wanted or found >= least))
        for where, found in figures["localisation"].items():
            name = f"recall, edit {where}, {attribute}".replace("edit edit", "edit")
            rows.append(_Row(name, f"{found[attribute]:.2f}"))
        rows.append(
            _Row(f"{attribute} read off the residual's length", f"{figures['norm_reader'][attribute]:.2f}", "chance")
        )
    kl, facts = figures["kl_prose"], figures["known_facts"]
    share = facts["lost"] / max(1, facts["known"])
    rows.append(_Row("KL on prose (nats)", f"{kl:.4f}", f"< {KL}", kl < KL))
    rows.append(_Row(f"known facts lost, of {facts['known']}", f"{share:.2f}", f"≤ {LOST}", share <= LOST))
    return rows


def _show(rows: list[_Row], title: str) -> None:
    from lensbench.report.tables import print_table

    table = Table("figure", title=title, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("expected", justify="right")
    for one in rows:
        table.add_row(one.figure, one.value if one.good else f"[red]{one.value} missed[/red]", one.expected)
    print_table(table)
