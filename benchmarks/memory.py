"""Peak memory and time of the main job, as the number of items grows: one process a size.

The task is made up: as many subjects as asked for, in relations of 250, eight answers; the methods are the logit lens,
the tuned lens and a Patchscope at a few layers, with their rivals, on the built-in model. `anonymous` is memory that
only this process has; `mapped` counts pages of files too (residuals on the disk), which the system takes back when
it needs them.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import Table, heading, options

SIZES = (100, 1000, 10000)
PER_RELATION = 250
ANSWERS = ("bread", "cheese", "coffee", "honey", "rice", "salt", "tea", "wine")
# Syllables of made-up names.
FIRST = ("Al", "Ber", "Cor", "Dan", "El", "Fer", "Gil", "Han", "Ig", "Jor", "Kal", "Lor", "Mar", "Nor", "Ol", "Per")
LAST = ("ado", "bert", "can", "dell", "eno", "fox", "gard", "holm", "inger", "jak", "kov", "lund", "mond", "nard")
NAMES = [f"{one}{two}" for one in FIRST for two in LAST]


def write_task(folder: Path, subjects: int) -> None:
    """Write a task of made-up subjects, dealt to answers in turn."""
    relations = -(-subjects // PER_RELATION)
    lines = [f'name = "{folder.name}"', 'summary = "made up"']
    facts = []
    for number in range(relations):
        lines += [
            f"[relations.likes{number}]",
            'kind = "class"',
            'summary = "who → what"',
            'inspection = ["They say that {subject} likes"]',
            'questions = ["What does {subject} like? Answer:"]',
            f"choice_sets = [{json.dumps(list(ANSWERS))}]",
            f"[relations.likes{number}.sources.subject]",
            'train = ["Once I saw {subject}"]',
            'test = ["We spoke of {subject}"]',
        ]
        for i in range(min(PER_RELATION, subjects - number * PER_RELATION)):
            place = number * PER_RELATION + i
            name = f"{NAMES[place % len(NAMES)]} {NAMES[place // len(NAMES)]}"
            facts.append({"subject": name, "relation": f"likes{number}", "answer": ANSWERS[i % 8]})
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "items.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")


def watch(done: threading.Event, peak: dict[str, int]) -> None:
    """Note the most memory of this process, a hundred times a second."""
    import psutil

    process = psutil.Process()
    while not done.wait(0.01):
        memory = process.memory_info()
        anonymous = memory.rss - getattr(memory, "shared", 0)
        peak["anonymous"] = max(peak.get("anonymous", 0), anonymous)
        peak["mapped"] = max(peak.get("mapped", 0), memory.rss)


def work(subjects: int, layers: str) -> None:
    """Run the evaluation of one size in this process, and print what it took."""
    from lensbench import evaluate

    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder) / "task", subjects)
        done, peak = threading.Event(), {}
        watcher = threading.Thread(target=watch, args=(done, peak))
        watcher.start()
        begun = time.perf_counter()
        run = evaluate(
            tasks=(str(Path(folder) / "task"),),
            inspectors=("logit_lens", "tuned_lens", "patchscope"),
            baselines=("shuffled", "mean", "input_only"),
            layers=layers,
            out=Path(folder) / "run",
        )
        seconds = time.perf_counter() - begun
        done.set()
        watcher.join()
        assert not run.failed, run.failed
    print(json.dumps({"seconds": seconds, **peak}))


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--layers", default="stride:6")
    parser.add_argument("--one", type=int, help=argparse_hidden())
    given = parser.parse_args()
    if given.one:
        work(given.one, given.layers)
        return
    heading("Memory and time by the number of items")
    table = Table("items", "seconds", "seconds per item", "anonymous", "mapped too")
    for size in SIZES[: 1 if given.quick else None]:
        command = [sys.executable, __file__, "--one", str(size), "--layers", given.layers]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = json.loads(done.stdout.splitlines()[-1])
        table.add(
            size,
            f"{took['seconds']:.0f}",
            f"{took['seconds'] / size:.3f}",
            *(f"{took[kind] / 2**20:.0f} MiB" for kind in ("anonymous", "mapped")),
        )
        print(table, flush=True)


def argparse_hidden() -> str:
    """Return the help text of an option that is for this script itself."""
    import argparse

    return argparse.SUPPRESS


if __name__ == "__main__":
    main()
