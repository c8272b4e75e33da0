"""Patchscope into a long few-shot prompt: one position, every layer, many items, source layer = target layer.

Compared: reading the sources and all patched passes, up to log-probability and rank of eight choice tokens.
- ours: lensbench.models.activations.capture and lensbench.models.patching.Patcher, from nothing but the loaded model,
  and with the mode that was proved once for the model (its seconds are printed, not counted);
- a plain loop as papers do it: transformers alone, one hooked pass an item and layer. It runs on some of the items,
  and its seconds are scaled to all of them;
- nnterp's patchscope_lens in a process of its own (--nnterp-python), at the best of several numbers of items a call.
Layers are 1 to L (the outputs of the blocks), which is what nnterp numbers 0 to L - 1.

Not compared: nnterp and the plain loop make logits of every position of the prompt, and nnterp returns the
probabilities of the whole vocabulary. lensbench makes logits of the last position only and keeps the eight tokens;
the whole distribution is not what it returns. Reading the eight tokens from nnterp's result is not timed.
"""

import time

import torch
from common import (
    LONG_PROMPT,
    PEERS,
    Peer,
    Table,
    check,
    check_ranks,
    choice_tokens,
    clocked,
    heading,
    interleaved,
    load,
    model_folder,
    options,
    source_items,
)

from lensbench.models.activations import capture, find_site
from lensbench.models.patching import Patcher, fastest_mode, make_prompt
from lensbench.models.token_scores import ranks_of


def ours(model, items, prompt, mode, tokens):
    """Return scores in (layer, item) order. The patcher is a new one, or it would answer from memory."""
    layers = range(1, model.n_layers + 1)
    values = capture(model, [find_site(model, item) for item in items], layers).values
    targets = torch.tensor(layers).repeat_interleave(len(items))
    return Patcher(model, mode).score(prompt, values.flatten(0, 1), targets, tokens)


def plain_loop(model, items, prompt, tokens):
    """Return log-probabilities and ranks, (item, layer) order: one hooked transformers pass each."""
    ids = torch.tensor([prompt.ids])
    blocks = model.parts.blocks
    found = []
    for item in items:
        seen = []
        handles = [block.register_forward_hook(lambda _m, _a, out, s=seen: s.append(out[0, -1])) for block in blocks]
        with torch.no_grad():
            model.module(torch.tensor([model.tokens.encode(item.source).ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        for block, vector in zip(blocks, seen, strict=True):

            def overwrite(_module, _args, out, vector=vector):
                out = out.clone()
                out[0, prompt.position] = vector
                return out

            handle = block.register_forward_hook(overwrite)
            with torch.no_grad():
                logits = model.module(ids, use_cache=False).logits[:, -1]
            handle.remove()
            found.append((logits.log_softmax(-1)[0, tokens], ranks_of(logits, logits[:, tokens])[0]))
    return torch.stack([logs for logs, _ in found]), torch.stack([ranks for _, ranks in found])


def best_batch(peer, job, sizes):
    """Return how many items a call the peer is fastest with, an item; the first call is a warm-up."""
    peer.ask("patchscope", **job | {"sources": job["sources"][:2], "layers": [0], "batch": 2})
    layers = [len(job["layers"]) // 2]
    seconds = {
        size: peer.ask("patchscope", **job | {"sources": job["sources"][:size], "layers": layers, "batch": size})[
            "seconds"
        ]
        / size
        for size in sizes
    }
    print("nnterp, seconds an item and layer by items a call:", {k: round(v, 4) for k, v in seconds.items()})
    return min(seconds, key=lambda size: seconds[size])


def compare(timings, by_item, loop_items):
    """Check that all sides found the same, and print the table."""
    scores = timings["ours"].result
    log_probs, ranks = by_item(scores.log_probs), by_item(scores.ranks)
    table = Table("side", "seconds", "times ours")
    print()
    for name, timing in timings.items():
        if name == "plain loop":
            logs, places = (part.reshape(loop_items, *log_probs.shape[1:]) for part in timing.result)
            check(f"{name}, log-probabilities", log_probs[:loop_items], logs)
            check_ranks(f"{name}, ranks", ranks[:loop_items], places)
        elif name != "ours":
            check(f"{name}, log-probabilities", log_probs, timing.result["log_probs"])
            check_ranks(f"{name}, ranks", ranks, timing.result["ranks"])
        table.add(name, timing, f"{timing.median / timings['ours'].median:.3g}")
    print(f"\n{table}")


def main() -> None:
    """Print a table."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--loop-items", type=int, default=2, help="items that the plain loop runs on")
    parser.add_argument("--nnterp-python", help="interpreter of an environment with nnterp 1.3")
    given = parser.parse_args()
    count = 8 if given.quick else given.items
    model, items = load(), source_items(count)
    tokens, prompt = choice_tokens(model), make_prompt(model, LONG_PROMPT, "x")
    heading(f"Patchscope: {count} items, {model.n_layers} layers, a prompt of {len(prompt.ids)} tokens")
    begun = time.perf_counter()
    mode = fastest_mode(model, prompt)
    print(f"mode {mode}, proved in {time.perf_counter() - begun:.2f} s", flush=True)
    loop = items[: given.loop_items]
    sides = {
        "ours": clocked(lambda: ours(model, items, prompt, mode, tokens)),
        "plain loop": clocked(lambda: plain_loop(model, loop, prompt, tokens), scale=count / len(loop)),
    }
    ours(model, items[:2], prompt, mode, tokens)

    def by_item(values):
        return values.reshape(model.n_layers, count, -1).transpose(0, 1)

    if not given.nnterp_python:
        return compare(interleaved(sides, given.repeats), by_item, len(loop))
    with Peer(given.nnterp_python, str(PEERS / "nnterp_worker.py"), model_folder()) as peer:
        job = {
            "sources": [item.source for item in items],
            "prompt": LONG_PROMPT.replace("{subject}", "x"),
            "position": prompt.position,
            "layers": list(range(model.n_layers)),
            "tokens": tokens,
        }
        job["batch"] = best_batch(peer, job | {"batch": 0}, sorted({min(size, count) for size in (5, 10, 25, 100)}))
        name = f"nnterp {peer.versions['nnterp']}, {job['batch']} items a call"
        return compare(interleaved(sides | {name: peer.side("patchscope", **job)}, given.repeats), by_item, len(loop))


if __name__ == "__main__":
    main()
