"""`lensbench fit`: fit a method once, and keep it in a folder."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    ModelArgs,
    ModulePaths,
    Offline,
    Quiet,
    Revision,
    print_json,
    read_module_paths,
    read_settings,
)


@app.command()
def fit(
    inspector: Annotated[
        str,
        typer.Argument(
            help="A method that learns from prose, such as tuned_lens; oracle, selfie_adapter or nla.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder for what was learned.", show_default=False)],
    model: Model = "smollm2-135m",
    parameter: Annotated[list[str] | None, typer.Option("--set", help="PARAMETER=VALUE; can be repeated.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    model_args: ModelArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a lens on prose, or train a verbalizer, and write it into a folder that others can use.

    Lenses are written as checkpoints of the tuned-lens package; `--set tuned_lens.checkpoint=FOLDER` reads them back.
    A Jacobian lens is written as FOLDER/jacobian_lens.pt, which `--set jacobian_lens.path=FILE` reads.
    Verbalizers (oracle, selfie_adapter, nla) are trained; `--set oracle.adapter=FOLDER` reads one back.

    Example: `lensbench fit tuned_lens --model gpt2 --out gpt2-lens --set steps=100`
    """
    from lensbench.evaluation.config import make_config
    from lensbench.inspectors.catalog import check_inspector
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    learned = read_settings(parameter or [], "PARAMETER=VALUE, such as steps=100")
    settings: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "offline": offline}
    settings |= {"revision": revision, "module_paths": read_module_paths(module_paths), "model_args": model_args}
    settings |= {
        "inspectors": (inspector,),
        "parameters": {inspector: learned},
    }
    config = make_config({name: value for name, value in settings.items() if value is not None})
    check_inspector(inspector)
    check_model_name(model, offline=offline)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.training import fit as fitting

    spent = fitting.fit(config, out)
    if as_json:
        found = {"inspector": inspector, "model": model, "folder": str(out)}
        print_json(found | {"tokens": spent.tokens, "seconds": spent.seconds, "split_half": spent.split_half})
        return
    took = f"{spent.tokens:,} tokens, {spent.seconds:.0f} s"
    told = f"{inspector} of {model} ({took}) is in {out}"
    if spent.split_half:
        told += "\ncosine of two halves of the prompts, by layer: " + " ".join(f"{one:.2f}" for one in spent.split_half)
    Console(soft_wrap=True).print(told, highlight=False, markup=False)
