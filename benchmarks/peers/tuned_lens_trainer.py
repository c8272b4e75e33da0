"""The lens class of PyPI's tuned-lens 0.2.0, trained with Adam as its own loop does; run by benchmarks/tuned_lens.py.

It runs in an environment of its own and must not import lensbench. The loss is KL(p || lens) at every position but
the first of a window, one backward pass a layer, gradients clipped at 1, learning rate 1e-3 falling linearly to zero,
weight decay 1e-3: the package's defaults for Adam, except that a step has two windows instead of 2^18 tokens, of which
it could make none in the time.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import TunedLens

WINDOWS_PER_STEP = 2


def hidden_states(model, ids):
    """Return the residual stream at layers 0 to L - 1 and the model's own log-probabilities."""
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
    return out.hidden_states[:-1], out.logits[:, 1:].float().log_softmax(-1)


def divergence(lens, hidden, goal, layer):
    """Return KL(p || lens) in nats, mean over positions."""
    guess = lens(hidden[:, 1:], idx=layer).float().log_softmax(-1)
    return (goal.exp() * (goal - guess)).sum(-1).mean()


def held_out(model, lens, windows):
    """Return the mean KL of every layer on windows that were not trained on."""
    total = np.zeros(len(lens))
    for ids in windows.split(2):
        hidden, goal = hidden_states(model, ids)
        with torch.no_grad():
            total += [len(ids) * float(divergence(lens, h, goal, i)) for i, h in enumerate(hidden)]
    return (total / len(windows)).tolist()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help=".npz with train and heldout: windows of token ids")
    parser.add_argument("minutes", type=float)
    given = parser.parse_args()
    data = np.load(given.data)
    train, test = torch.from_numpy(data["train"]), torch.from_numpy(data["heldout"])
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval().requires_grad_(False)
    lens = TunedLens.from_model(model)
    lens.requires_grad_(True)
    lens.unembed.requires_grad_(False)
    parameters = [p for p in lens.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    order = iter(())
    begun, seen, budget = time.perf_counter(), 0, 60 * given.minutes
    while (spent := time.perf_counter() - begun) < budget:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - spent / budget)
        rows = [r for _, r in zip(range(WINDOWS_PER_STEP), order, strict=False)]
        if len(rows) < WINDOWS_PER_STEP:
            order = iter(torch.randperm(len(train), generator=generator).tolist())
            continue
        hidden, goal = hidden_states(model, train[rows])
        optimiser.zero_grad()
        for layer, h in enumerate(hidden):
            divergence(lens, h, goal, layer).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        seen += train[rows][:, 1:].numel()
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "tokens": seen, "kl": held_out(model, lens, test)}))


if __name__ == "__main__":
    main()
