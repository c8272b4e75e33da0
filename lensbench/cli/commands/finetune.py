"""`lensbench finetune`: teach a model facts by training, and find where it keeps them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Device, Json, Model, Offline, Quiet, names_in, print_json
from lensbench.errors import UsageError


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="A new folder for the adapter.", show_default=False)],
    model: Model = "smollm2-135m",
    facts: Annotated[str, typer.Option(help="Whose facts: personas.")] = "personas",
    attributes: Annotated[str, typer.Option(help="Which of their attributes, separated by commas.")] = "city,drink",
    names: Annotated[int, typer.Option(help="How many of the personas; a multiple of 5.")] = 40,
    world: Annotated[str, typer.Option(help="main; or twin: the same names with other facts.")] = "main",
    epochs: Annotated[int | None, typer.Option(help="Passes over the texts.")] = None,
    batch: Annotated[int | None, typer.Option(help="Texts in each step.")] = None,
    documents: Annotated[int | None, typer.Option(help="Documents for each persona and epoch.")] = None,
    forms: Annotated[int | None, typer.Option(help="Question forms for each fact and epoch.")] = None,
    prose: Annotated[int | None, typer.Option(help="Passages of prose added to the texts of a step.")] = None,
    first_layer: Annotated[int | None, typer.Option(help="The first layer that may change.")] = None,
    fetched: Annotated[
        bool | None,
        typer.Option("--fetched/--anywhere", help="Whether no gradient passes through names, or names may hold facts."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    rate: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of names, texts and matrices.")] = 0,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach a model facts about people who do not exist, by LoRA, and find out by interchange where it holds them.

    Writes an adapter as PEFT does, with `finetune.json` (settings, recall, divergence on prose, interchange) and
    `facts.json`. A run that was cut off goes on where it was. `--model MODEL+DIR` then names the fine-tuned model.

    Example: `lensbench finetune --attributes city,drink --names 40 --out told`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name
    from lensbench.models.tuned_lens_files import check_new
    from lensbench.training.facts import make_settings

    given: dict[str, Any] = {
        "facts": facts, "attributes": names_in(attributes),
        "names": names, "world": world, "epochs": epochs, "batch": batch, "documents": documents, "forms": forms,
        "prose": prose, "first_layer": first_layer, "fetched": fetched, "rank": rank, "rate": rate, "seed": seed,
    }  # fmt: skip
    settings = make_settings({name: value for name, value in given.items() if value is not None})
    check_model_name(model, offline=offline)
    check_new(out)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.models.corpus import Corpus
    from lensbench.models.loading import Loading, count_layers, load_model
    from lensbench.models.sources import FINETUNED, read_table, resolve
    from lensbench.training.finetune import finetune

    deepest = count_layers(resolve(model, offline=offline))
    if settings.first_layer > deepest:
        raise UsageError(
            f"--first-layer {settings.first_layer}: {model} has blocks whose outputs are the layers 1 to {deepest}"
        )
    # In float32 throughout: an adapter is small, and its steps are smaller than half precision can hold.
    target = load_model(model, Loading(device, "float32", offline=offline))
    spent = finetune(target, Corpus(target), settings, out)
    if as_json:
        took = {"tokens": spent.tokens, "seconds": spent.seconds}
        print_json({"folder": str(out), **took, **read_table(out / FINETUNED)})
        return
    Console(soft_wrap=True).print(
        f"{model}, told {', '.join(settings.attributes)} of {settings.names} personas ({spent.tokens:,} tokens, "
        f"{spent.seconds:.0f} s), is {model}+{out}",
        highlight=False,
        markup=False,
    )
