"""What `--isolate` costs: the same run with and without it, on a tiny model and on the built-in one.

Both runs find residuals and fitted lenses in the cache, which a first run has filled: what is compared is fitting and
scoring. Seconds of the processor are those of this process, of the methods' processes and of the server that they are
forked from, on one thread; the model is loaded and the page is written in both. The records of both are compared byte
for byte.
"""

import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
from common import Table, heading, model_folder, options
from joblib import parallel_config

from lensbench import evaluate
from lensbench.harness import isolated_fits, processes

METHODS = {"probe": {}, "tuned_lens": {"tokens": 16384}}
TASK = "attribute_extraction/country_continent"


class Counted(processes.Process):
    """Adds up what the processes of methods take."""

    seconds, peak, count = 0.0, 0.0, 0

    def close(self):
        """Ask what it took, and end it."""
        Counted.seconds += self.call(time.process_time)
        Counted.count += 1
        super().close()


def tiny_folder(folder):
    """Save a random Llama of two layers with the built-in model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(model, method, limit, out, *, isolate):
    """Run once; return seconds of the processor and of the clock, and the bytes of the records by file."""
    Counted.seconds, Counted.count = 0.0, 0
    processes.close_server()
    before, begun = time.process_time(), time.perf_counter()
    # Layers are fitted in one process in both, so that all work is counted.
    with parallel_config(backend="sequential"):
        run = evaluate(
            str(model), tasks=(TASK,), sites=("subject",), inspectors=(method,), limit=limit, isolate=isolate,
            parameters={method: METHODS[method]} if METHODS[method] else {}, out=out,
        )  # fmt: skip
    wall, used = time.perf_counter() - begun, time.process_time() - before
    assert not run.failed, run.failed
    server = processes.server_pid()
    shared = sum(psutil.Process(server).cpu_times()[:2]) if server else 0.0
    records = {file.name: file.read_bytes() for file in sorted((out / "records").iterdir())}
    return used + Counted.seconds + shared, wall, records


def main():
    """Print what each method takes with and without isolation, on each model."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--limit", type=int, default=60)
    given = parser.parse_args()
    logging.getLogger("lensbench").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    isolated_fits.Process = Counted
    heading(f"Isolation: {TASK} at subject with all baselines, {given.limit} items, all layers")
    table = Table("model", "method", "fits", "processor, s", "clock, s", "processes")
    real = Path(model_folder())
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["LENSBENCH_CACHE"] = str(root / "cache")
        for model in (tiny_folder(root / "tiny"), *([] if given.quick else [real])):
            for method in METHODS:
                measure(model, method, given.limit, root / "warm" / method / model.name, isolate=False)
                kept = {}
                for isolate in (False, True):
                    found = []
                    for repeat in range(given.repeats):
                        out = root / "runs" / model.name / method / f"{isolate}-{repeat}"
                        *seconds, kept[isolate] = measure(model, method, given.limit, out, isolate=isolate)
                        found.append(seconds)
                    used, wall = (statistics.median(column) for column in zip(*found, strict=True))
                    how = "isolated" if isolate else "together"
                    row = (model.name, method, how, f"{used:.1f}", f"{wall:.1f}", Counted.count)
                    table.add(*row)
                    print(*row, flush=True)
                assert kept[False] == kept[True], "isolation has changed records"
    print(table)


if __name__ == "__main__":
    main()
