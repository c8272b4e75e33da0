"""Every source layer into every target layer: a full grid of patched passes, for a short and a long prompt.

Compared: the patched passes alone, from residuals that were captured before, up to log-probability and rank of eight
choice tokens, for layers 0 to L - 1 on both axes.
- ours: lensbench.models.patching.Patcher;
- batched plain passes: transformers alone, rows of one target layer in a batch, a hook that overwrites each row's
  placeholder, whole passes, the head at the last position only. The batch is the best of several sizes. They run on
  some of the target layers (evenly spaced: a plain pass costs the same at all of them), scaled to all.

Not compared: capturing the sources, which is the same for both.
"""

import torch
from common import (
    LONG_PROMPT,
    SHORT_PROMPT,
    Table,
    check,
    check_ranks,
    choice_tokens,
    clocked,
    heading,
    interleaved,
    load,
    options,
    source_items,
)

from lensbench.models.activations import capture, find_site
from lensbench.models.patching import Patcher, fastest_mode, make_prompt
from lensbench.models.token_scores import ranks_of

TARGETS = {SHORT_PROMPT: 3, LONG_PROMPT: 30}


def ours(model, values, prompt, mode, tokens):
    """Return scores in (target layer, source layer, item) order."""
    layers = model.n_layers
    rows = values.flatten(0, 1).repeat(layers, 1)
    targets = torch.arange(layers).repeat_interleave(values.shape[0] * values.shape[1])
    return Patcher(model, mode).score(prompt, rows, targets, tokens)


@torch.no_grad()
def plain(model, values, prompt, tokens, targets, batch):
    """Return log-probabilities and ranks in (target layer, source layer, item) order."""
    ids = torch.tensor([prompt.ids])
    found = []
    for target in targets:
        for vectors in values.flatten(0, 1).split(batch):

            def overwrite(_module, args, vectors=vectors):
                hidden = args[0].clone()
                hidden[:, prompt.position] = vectors
                return (hidden, *args[1:])

            handle = model.parts.blocks[target].register_forward_pre_hook(overwrite)
            rows = ids.expand(len(vectors), -1)
            logits = model.module(rows, use_cache=False, logits_to_keep=1).logits[:, -1]
            handle.remove()
            asked = logits[:, tokens]
            found.append((asked - logits.logsumexp(1, keepdim=True), ranks_of(logits, asked)))
    return torch.cat([logs for logs, _ in found]), torch.cat([ranks for _, ranks in found])


def best_batch(model, values, prompt, tokens, sizes):
    """Return the number of rows with which plain passes are fastest, a row, the best of two runs of each."""
    seconds = {}
    for size in sizes:
        rows = values.flatten(0, 1)[:size][None]
        run = clocked(lambda rows=rows, size=size: plain(model, rows, prompt, tokens, [0], size))
        seconds[size] = min(run()[0], run()[0]) / rows.shape[1]
    print("- plain passes, seconds a row by rows a batch:", {k: round(v, 5) for k, v in seconds.items()}, flush=True)
    return min(seconds, key=lambda size: seconds[size])


def compare(model, text, items, given, table):
    """Time one prompt and add its row."""
    prompt, tokens, layers = make_prompt(model, text, "x"), choice_tokens(model), model.n_layers
    print(f"\nPrompt of {len(prompt.ids)} tokens, {len(items)} items, {layers}x{layers} layers")
    values = capture(model, [find_site(model, item) for item in items], range(layers)).values
    mode = fastest_mode(model, prompt)
    per_target = values.shape[0] * values.shape[1]
    sizes = sorted({min(size, per_target) for size in (4, 8, 16, 32, 64, 128)})
    batch = best_batch(model, values, prompt, tokens, sizes[-3:] if given.quick else sizes)
    count = max(1, min(layers, round(given.plain_rows / per_target)))
    targets = [round((i + 0.5) * layers / count - 0.5) for i in range(count)]
    timings = interleaved(
        {
            "ours": clocked(lambda: ours(model, values, prompt, mode, tokens)),
            "plain": clocked(lambda: plain(model, values, prompt, tokens, targets, batch), scale=layers / count),
        },
        given.repeats,
    )
    scores = timings["ours"].result
    kept = (torch.tensor(targets)[:, None] * per_target + torch.arange(per_target)).flatten()
    logs, ranks = timings["plain"].result
    check("log-probabilities", scores.log_probs[kept], logs)
    check_ranks("ranks", scores.ranks[kept], ranks)
    ratio = timings["plain"].median / timings["ours"].median
    table.add(
        len(prompt.ids), len(items), mode, timings["ours"], f"{timings['plain']}, batch {batch}, {count} target layers",
        f"{ratio:.3g}", TARGETS[text],
    )  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--short-items", type=int, default=4)
    parser.add_argument("--long-items", type=int, default=2)
    parser.add_argument("--plain-rows", type=int, default=600, help="about how many plain passes a run makes")
    given = parser.parse_args()
    if given.quick:
        given.short_items = given.long_items = 1
        given.plain_rows = 60
    model = load()
    heading("Grid of source and target layers")
    table = Table("prompt tokens", "items", "mode", "ours", "plain batched passes", "ratio", "target")
    for text, count in ((SHORT_PROMPT, given.short_items), (LONG_PROMPT, given.long_items)):
        compare(model, text, source_items(count), given, table)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
