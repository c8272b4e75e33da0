"""`lensbench doctor`: is a model read correctly?"""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    ModelArgs,
    ModulePaths,
    Offline,
    Quiet,
    Revision,
    print_json,
    read_model_args,
    read_module_paths,
)
from lensbench.errors import LensbenchError


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, GGUF file or Hub id.", show_default=False)],
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    model_args: ModelArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is this model read correctly? Shows each check with its value and tolerance, and a verdict.

    Examples:
    `lensbench doctor smollm2-135m`

    `lensbench doctor smollm2-135m --model-args attn_implementation=eager,dtype=bfloat16`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    check_model_name(model, offline=offline)
    paths = read_module_paths(module_paths)
    args = read_model_args(model, model_args, dtype)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.explore.doctor import examine_loading
    from lensbench.models.architecture import ModulePaths
    from lensbench.models.loading import Loading, load_model
    from lensbench.report.tables import print_rows

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None, model_args=args)
    checks = examine_loading(lambda: load_model(model, how))
    failed = [check.name for check in checks if not check.passed]
    if as_json:
        print_json({"model": model, "passed": not failed, "checks": [asdict(check) for check in checks]})
    else:
        rows = [(check.name, check.figure, check.tolerance, "ok" if check.passed else "FAILED") for check in checks]
        print_rows(("check", "figure", "tolerance", ""), rows)
    if failed:
        raise LensbenchError(f"{model} is not read correctly: {', '.join(failed)}; do not trust results on it")
    if not as_json:
        Console(soft_wrap=True).print(f"{model} is read correctly.", highlight=False)
