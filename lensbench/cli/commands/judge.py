"""`lensbench judge`: grades for generated texts."""

from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, RunFolder, print_json
from lensbench.errors import UsageError


@app.command()
def judge(
    run: RunFolder,
    similarity: Annotated[
        str | None, typer.Option(help="A sentence-transformers model (name or folder): similarity to the description.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge", help="A model that grades texts from 1 to 10: local, or behind --url.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many items.", min=1)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Grade generated texts with another model; the grades go into metrics.csv.

    `LENSBENCH_JUDGE_KEY` may hold the key of an endpoint.

    Examples: `lensbench judge RUN --similarity ./all-minilm`; `lensbench judge RUN --judge smollm2-135m`
    """
    if url is not None and judge_model is None:
        raise UsageError("--url needs the name of the model behind it; add --judge NAME")
    if similarity is None and judge_model is None:
        raise UsageError("nothing to do: give --similarity MODEL, --judge MODEL, or both")
    from lensbench.explore import judge as judging
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    quiet_libraries()
    say_what_happens(quiet=quiet)
    if judge_model is not None and url is None:
        check_model_name(judge_model)
    counts = {}
    if similarity is not None:
        counts[judging.SIMILARITY] = judging.similarity(run, similarity, limit)
    if judge_model is not None:
        chosen = judging.endpoint_judge(url, judge_model) if url else judging.local_judge(judge_model)
        counts[judging.MARK] = judging.mark(run, chosen, limit)
    if as_json:
        print_json({"run": str(run), "marked": counts, "files": [str(run / "metrics.csv")]})
        return
    for metric, count in counts.items():
        Console(soft_wrap=True).print(f"{metric}: {count} texts, in {run / 'metrics.csv'}", highlight=False)
