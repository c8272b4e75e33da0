"""What all baselines of a method cost, beside the method alone: one task, one site, one method at a time.

The target is the built-in model with a random edit of rank one in the block below layer 9, so that every baseline
has something to read: the unedited model as verbalizer, unplanted model and reference, another edit as twin. Seconds
are those of the processor, on one thread; nothing is taken from a cache of earlier runs. Loading models and proving
what they can do, once a run, is printed apart.

The method alone is timed by itself. Then all methods are run with all their baselines, in the order of a run: what
baselines share with the method, or one method's with the next one's, is done once and counted where it is done first.
"""

import json
import logging
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from common import MODEL, Table, heading, model_folder, options

from lensbench.evaluation.config import make_config
from lensbench.evaluation.plan import check_job
from lensbench.evaluation.runner import Runner
from lensbench.models.loading import with_random_weights
from lensbench.models.patching import patcher_of
from lensbench.models.patching.patcher import RowMemory
from lensbench.results.records import NO_BASELINE
from lensbench.tasks import load_task
from lensbench.tasks.personas import personas

METHODS = ("patchscope", "logit_lens", "probe")
LAYER, SIZE, MOST, WARM = 9, 0.05, 4.0, 4


def edited(folder, seed):
    """Save the model with a random edit of one down projection, and the facts of the twin world beside it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = model_folder()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    weight = model.model.layers[LAYER - 1].mlp.down_proj.weight
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(size, 1, generator=generator) for size in weight.shape]
    edit = sides[0] @ sides[1].T
    with torch.no_grad():
        weight += SIZE * edit * weight.norm() / edit.norm()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    told = {}
    for name, values in personas(load_task("personas/city"), "twin").items():
        for attribute, value in values.items():
            told.setdefault(attribute, {})[name] = value
    (folder / "facts.json").write_text(json.dumps(told), encoding="utf-8")
    return str(folder)


def prepared(target, twin, methods, layers, limit):
    """Return a runner whose models are loaded, and whose proofs are made on items that are not measured."""
    settings = {
        "model": target, "verbalizer": MODEL, "unplanted": MODEL, "reference": MODEL, "twin": twin,
        "tasks": ["personas/city"], "sites": ["subject"], "inspectors": methods, "layers": layers, "limit": limit,
    }  # fmt: skip
    runner = Runner(check_job(make_config(settings)))
    for place, benches in runner.benches.items():
        for bench in benches:
            runner.ask_knowledge(place, bench)
    for cell in runner.plan.cells:
        benches = runner.benches[cell.place]
        few = [replace(bench, items=bench.train_items[:WARM]) for bench in benches]
        if runner.makes[cell.inspector]().learns_from != "labels":
            runner.score(cell, few, {})
    with_random_weights(runner.context.model, 0)
    return runner


def main():
    """Print a table a method, and whether each stays within four times the method alone."""
    parser = options(__doc__, repeats=1)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--layers", default=",".join(map(str, range(0, 31, 4))))
    parser.add_argument("--limit", type=int, default=40)
    given = parser.parse_args()
    os.environ["LENSBENCH_CACHE_LIMIT"] = "1KB"  # nothing is kept from one run to the next
    logging.getLogger("lensbench").setLevel(logging.ERROR)
    layers, limit = ("0,12", 10) if given.quick else (given.layers, given.limit)
    heading(f"Baselines of one method: personas/city at subject, {limit} items, layers {layers}")
    with tempfile.TemporaryDirectory() as folder:
        target, twin = (edited(Path(folder) / name, seed) for seed, name in enumerate(("target", "twin")))
        begun = time.perf_counter()
        runner = prepared(target, twin, given.methods.split(","), layers, limit)
        print(f"{time.perf_counter() - begun:.1f} s to load models and prove passes, once a run", flush=True)
        alone = {method: spent_alone(runner, method) for method in given.methods.split(",")}
        spent = {cell: clock(lambda cell=cell: runner.work(cell)) for cell in runner.plan.cells}
        for method, own in alone.items():
            show(method, own, {cell: one for cell, one in spent.items() if cell.inspector == method})


def clock(work):
    """Return the processor seconds of a piece of work, and what it returned."""
    begun = processor_seconds()
    done = work()
    return processor_seconds() - begun, done


def processor_seconds():
    """Return those of this process and of its children: probes are fitted in several."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))


def spent_alone(runner, method):
    """Return the seconds of a method that nothing has been done for before; nothing of it is kept."""
    own = next(cell for cell in runner.plan.cells if (cell.inspector, cell.baseline) == (method, NO_BASELINE))
    benches = [replace(bench, context=replace(bench.context)) for bench in runner.benches[own.place]]
    seconds, _ = clock(lambda: runner.score(own, benches, {}))
    patcher_of(runner.context.verbalizer)._memory = RowMemory()
    return seconds


def show(method, own, spent):
    """Print the seconds of a method and of each of its baselines."""
    table = Table(method, "seconds", "times the method", "records")
    table.add("the method alone", f"{own:.2f}", "1.00", "")
    rivals = {cell: one for cell, one in spent.items() if cell.baseline != NO_BASELINE}
    for cell, (seconds, work) in rivals.items():
        if work.entry["status"] == "failed":
            raise SystemExit(work.entry["traceback"])
        table.add(cell.baseline, f"{seconds:.2f}", f"{seconds / own:.2f}", work.entry["rows"])
    whole = sum(seconds for seconds, _ in rivals.values())
    table.add("all baselines", f"{whole:.2f}", f"{whole / own:.2f}", "")
    verdict = "yes" if whole <= MOST * own else "NO"
    print(f"\n{table}\n\nbaselines of {method}: within {MOST:.0f} times the method alone: {verdict}", flush=True)


if __name__ == "__main__":
    main()
