"""Tuned lens: how soon ours reaches the held-out KL that the reference trainer has after 20 minutes, and after them.

Both learn translators of all 30 layers of the built-in model from the same windows of the same prose, on the same
machine, and are measured on the same held-out windows (16 of 128 tokens, the first position left out). The reference
is the lens class of PyPI's tuned-lens 0.2.0 trained with Adam as its own loop does (peers/tuned_lens_trainer.py); it
runs in an environment of its own. Ours is timed at several settings, capture included, with nothing cached; the time
to reach is that of the first which is below the reference at every layer.

The two take turns, not interleaved: a run is 20 minutes. Leave the machine alone meanwhile.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Table, heading, load, model_folder, options

from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.target import Target
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel

# (corpus tokens, KL steps), from quick to slow.
SETTINGS = ((1024, 0), (2048, 0), (4096, 0), (8192, 0), (8192, 4), (8192, 16))
HELD_OUT_WINDOWS = 16
SHOWN = (0, 3, 9, 15, 21, 27, 29)


def held_out(model: LanguageModel, lens: TunedLens, layers: range) -> np.ndarray:
    """Return the mean KL(p || lens) of every layer in nats, over the held-out positions."""
    corpus = Corpus(model, PROSE / "heldout.txt")
    total, count = np.zeros(len(layers)), 0
    for batch in corpus.residuals(HELD_OUT_WINDOWS * 128):
        for part in batch.split(256, dim=1):
            goal = model.unembed(part[-1]).log_softmax(-1)
            moved = lens.translate(tuple(layers), part[:-1])
            for layer in layers:
                guess = model.unembed(moved[layer]).log_softmax(-1)
                total[layer] += float((goal.exp() * (goal - guess)).sum())
            count += part.shape[1]
    return total / count


def fitted(model: LanguageModel, tokens: int, steps: int) -> tuple[float, TunedLens]:
    """Fit with nothing cached; return the seconds and the lens."""
    begun = time.perf_counter()
    lens = TunedLens(tokens=tokens, steps=steps)
    lens.fit(Target(model), model, Training(corpus=Corpus(model)))
    return time.perf_counter() - begun, lens


def reference(model: LanguageModel, python: str, minutes: float) -> dict:
    """Train the reference for so many minutes; return its seconds, tokens and KL."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "windows.npz"
        windows = Corpus(model, PROSE / "heldout.txt").windows[:HELD_OUT_WINDOWS]
        np.savez(data, train=Corpus(model).windows.numpy(), heldout=windows.numpy())
        script = Path(__file__).parent / "peers" / "tuned_lens_trainer.py"
        command = [python, str(script), model_folder(), str(data), str(minutes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--tuned-lens-python", default="python", help="of an environment with tuned-lens 0.2.0")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the reference, and of our long training")
    parser.add_argument("--reference", type=Path, help="JSON that an earlier run of the reference printed")
    given = parser.parse_args()
    heading("Tuned lens")
    model = load()
    layers = range(model.n_layers)
    if given.reference:
        theirs = json.loads(given.reference.read_text())
    else:
        theirs = reference(model, given.tuned_lens_python, given.minutes)
        print(json.dumps(theirs), flush=True)
    goal = np.array(theirs["kl"])
    table = Table("trainer", "seconds", *[f"KL, layer {layer}" for layer in SHOWN], "layers below the reference")

    def add(name: str, seconds: float, kl: np.ndarray) -> None:
        table.add(name, f"{seconds:.1f}", *[f"{kl[i]:.2f}" for i in SHOWN], f"{int((kl < goal).sum())} of {len(kl)}")

    add(f"reference, {theirs['tokens']} tokens", theirs["seconds"], goal)
    add("none (logit lens)", 0.0, held_out(model, fitted(model, 0, 0)[1], layers))
    reached = None
    for tokens, steps in SETTINGS[: 2 if given.quick else None]:
        seconds, lens = fitted(model, tokens, steps)
        kl = held_out(model, lens, layers)
        add(f"ours, {tokens} tokens, {steps} steps", seconds, kl)
        if reached is None and bool((kl < goal).all()):
            reached = seconds
    if not given.quick:
        seconds, lens = _long(model, given.minutes)
        add(f"ours, {lens.tokens} tokens, {lens.steps} steps", seconds, held_out(model, lens, layers))
    print(table)
    ratio = "not reached" if reached is None else f"{theirs['seconds'] / reached:.0f} times sooner ({reached:.1f} s)"
    print(f"\nbelow the reference at every layer: {ratio}; target 50 times")


def _long(model: LanguageModel, minutes: float) -> tuple[float, TunedLens]:
    """Fit on the whole corpus with as many steps as fit into the time."""
    tokens = Corpus(model).windows.numel() // 128 * 128
    few, many = (fitted(model, 1024, steps)[0] for steps in (2, 6))
    begun = time.perf_counter()
    for _ in Corpus(model).residuals(4096):
        pass
    capture = (time.perf_counter() - begun) * tokens / 4096
    steps = max(1, int((60 * minutes - 1.3 * capture) / ((many - few) / 4)))
    return fitted(model, tokens, steps)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
