"""Logit lens on many prompts at every layer, read at each prompt's last token: time, and memory above the model.

Compared, all from texts and the loaded model, each side in a process of its own:
- ours: capture and score_tokens (log-probabilities and ranks of eight choice tokens, and the ten likeliest tokens),
  and the same with token_logits (what comparing the eight choices takes, and nothing else);
- nnterp's logit_lens (--nnterp-python), at the best of several numbers of prompts a call: the probabilities of the
  whole vocabulary at the last token, for layers 1 to L (it has no layer of embeddings);
- tuned-lens's PredictionTrajectory with its logit lens (--tuned-lens-python): log-probabilities of the whole
  vocabulary at every position of one prompt after the other, of which eight choices at the last are kept.

Not compared: what nnterp and tuned-lens leave to be done. Reading choices, ranks or the likeliest tokens from their
results is not timed, and their results are not what the eight choices need. The seconds that our capture takes alone
are printed beside. Memory is the peak of resident memory above what there was after the model was loaded and had
read one prompt, in a fresh process for each figure.
"""

import sys
from contextlib import ExitStack

import numpy as np
from common import (
    PEERS,
    Peer,
    Table,
    check,
    check_ranks,
    choice_tokens,
    heading,
    interleaved,
    load,
    model_folder,
    options,
    source_items,
)
from peers.worker import serve

from lensbench.models.activations import Reading, capture

TOP = 10
SCRIPTS = {"nnterp": str(PEERS / "nnterp_worker.py"), "tuned-lens": str(PEERS / "tuned_lens_worker.py")}


def serve_ours() -> None:
    """Answer jobs as the peers' workers do."""
    model = load()
    layers = range(model.n_layers + 1)

    def captured(prompts):
        return capture(model, [Reading(model.tokens.encode(prompt).ids) for prompt in prompts], layers).values

    def by_prompt(rows, prompts):
        return rows.reshape(len(layers), len(prompts), -1).transpose(0, 1).numpy()

    def scores(prompts, tokens):
        return model.score_tokens(captured(prompts).flatten(0, 1), tokens, top_k=TOP)

    def read_scores(result, prompts, **_):
        names = ("log_probs", "ranks", "top")
        return {name: by_prompt(getattr(result, name), prompts) for name in names}

    def choices(prompts, tokens):
        return model.token_logits(captured(prompts).flatten(0, 1), tokens)

    jobs = {
        "scores": (scores, read_scores),
        "choices": (choices, lambda result, prompts, **_: {"logits": by_prompt(result, prompts)}),
        "capture": (lambda prompts, **_: captured(prompts), lambda *_, **__: {}),
    }
    serve(jobs, ("lensbench", "torch", "transformers"))


def best_batch(peer, job, sizes):
    """Return how many prompts a call the peer is fastest with, a prompt; the first call is a warm-up."""
    peer.ask("logit_lens", **job | {"prompts": job["prompts"][:1], "batch": 1})
    seconds = {
        size: peer.ask("logit_lens", **job | {"prompts": job["prompts"][:size], "batch": size})["seconds"] / size
        for size in sizes
    }
    print("nnterp, seconds a prompt by prompts a call:", {k: round(v, 4) for k, v in seconds.items()}, flush=True)
    return min(seconds, key=lambda size: seconds[size])


def memory(command, job, arguments):
    """Return the peak above the loaded model of one job in a fresh process, in MiB; None where it is not measured."""
    with Peer(*command) as peer:
        peer.ask(job, **arguments | {"prompts": arguments["prompts"][:1]})
        peak = peer.ask(job, **arguments)["peak_bytes"]
    return None if peak is None else peak / 2**20


def compare(timings):
    """Check that all sides found the same."""
    ours = timings["ours, ranks and top 10"].result
    chosen = timings["ours, choices only"].result["logits"]

    def centred(values):
        return values - values.mean(-1, keepdims=True)

    check("ours, choices only: differences between choices", centred(ours["log_probs"]), centred(chosen))
    for name, timing in timings.items():
        if name.startswith("nnterp"):
            check(f"{name}, log-probabilities", ours["log_probs"][:, 1:], timing.result["log_probs"])
            check_ranks(f"{name}, ranks", ours["ranks"][:, 1:], timing.result["ranks"])
            check_ranks(f"{name}, the top {TOP}", *by_place(ours["top"][:, 1:], timing.result["top"]))
        if name.startswith("tuned-lens"):
            check(f"{name}, log-probabilities", ours["log_probs"], timing.result["log_probs"])


def by_place(ours, theirs):
    """Return the places of our likeliest tokens, and where the other side has them (beyond its last: one more)."""
    same = ours[..., :, None] == theirs[..., None, :]
    found = np.where(same.any(-1), same.argmax(-1), theirs.shape[-1])
    return np.broadcast_to(np.arange(ours.shape[-1]), ours.shape), found


def show(timings, peaks):
    """Print the table: seconds and memory, and as multiples of ours."""
    full, choices = timings["ours, ranks and top 10"].median, timings["ours, choices only"].median
    least = peaks["ours, ranks and top 10"]
    table = Table("side", "seconds", "times ours", "times ours, choices only", "peak MiB", "ours as a share of it")
    for name, timing in timings.items():
        peak = peaks.get(name)
        table.add(
            name, timing, f"{timing.median / full:.3g}", f"{timing.median / choices:.3g}",
            f"{peak:.0f}" if peak else "", f"{least / peak:.2f}" if peak and least else "",
        )  # fmt: skip
    print(f"\n{table}")


def main() -> None:
    """Print a table."""
    parser = options(__doc__, repeats=5)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--nnterp-python", help="interpreter of an environment with nnterp 1.3")
    parser.add_argument("--tuned-lens-python", help="interpreter of an environment with tuned-lens 0.2.0")
    parser.add_argument("--serve", action="store_true", help="answer jobs: how the benchmark starts its own side")
    given = parser.parse_args()
    if given.serve:
        return serve_ours()
    model, items = load(), source_items(16 if given.quick else given.prompts)
    arguments = {"prompts": [item.source for item in items], "tokens": choice_tokens(model)}
    heading(f"Logit lens: {len(items)} prompts, {model.n_layers + 1} layers")
    del model
    own = (sys.executable, __file__, "--serve")
    with ExitStack() as stack:
        ours = stack.enter_context(Peer(*own))
        ours.ask("scores", **arguments), ours.ask("choices", **arguments)
        jobs = {
            "ours, ranks and top 10": (ours, own, "scores", arguments),
            "ours, choices only": (ours, own, "choices", arguments),
            "ours, capture alone": (ours, own, "capture", arguments),
        }
        for package, python in (("nnterp", given.nnterp_python), ("tuned-lens", given.tuned_lens_python)):
            if not python:
                continue
            command = (python, SCRIPTS[package], model_folder())
            peer = stack.enter_context(Peer(*command))
            mine, name = dict(arguments), f"{package} {peer.versions[package]}"
            if package == "nnterp":
                sizes = sorted({min(size, len(items)) for size in (10, 50, 200)})
                mine["batch"] = best_batch(peer, mine | {"batch": 0}, sizes)
                name += f", {mine['batch']} prompts a call"
            jobs[name] = (peer, command, "logit_lens", mine)
        sides = {name: peer.side(job, **mine) for name, (peer, _, job, mine) in jobs.items()}
        timings = interleaved(sides, given.repeats)
    compare(timings)
    peaks = {name: memory(command, job, mine) for name, (_, command, job, mine) in jobs.items()}
    show(timings, peaks)


if __name__ == "__main__":
    main()
