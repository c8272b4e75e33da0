"""How much of the machine's own speed at matrix products the patched pass and the capture of residuals reach.

Compared: useful floating-point work a second (only operations that depend on the patched vector: blocks at and above
each row's target layer for the tokens from the placeholder on, attention over the prefix included, and the head at
the last position) with the rate at which this machine multiplies the same matrices, block by block with the same
number of rows, the seven products of a block and the head, and nothing else. Both are measured in turns.
Rows have target layers 0 to L - 1, evenly. Capture is the same with whole sources and without a head; more than 100 %
there means that what sources begin with was run once.

Not counted as useful: norms, rotary positions, activations, copies, log-sum-exp and ranks, and padding. The profile
says what they take; its seconds are one thread's view of each operation, and profiling itself slows small operations.
"""

from collections import defaultdict
from contextlib import contextmanager

import torch
from common import (
    LONG_PROMPT,
    SHORT_PROMPT,
    Table,
    choice_tokens,
    clocked,
    heading,
    interleaved,
    load,
    options,
    source_items,
)
from peers.worker import watched
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from lensbench.models import activations as residuals
from lensbench.models.activations import capture, find_site
from lensbench.models.patching import PatchedPass, fastest_mode, make_prompt
from lensbench.models.patching import passes as engine

PRODUCTS = ("addmm", "mm", "bmm", "linear", "mkldnn", "matmul")
COPIES = ("cat", "copy_", "clone", "contiguous", "index", "_to_copy", "fill_", "empty", "select", "index_put_")


def linears(block):
    """Return the matrices of a block."""
    return [part for part in block.modules() if isinstance(part, torch.nn.Linear)]


def block_work(model, tokens, reach):
    """Return the operations of one block: its products for some tokens, and scores and sums over what they attend to.

    Args:
        model: for its sizes.
        tokens: how many tokens go through it.
        reach: how many tokens they attend to, all together.
    """
    config = model.module.config
    products = 2 * tokens * sum(part.weight.numel() for part in linears(model.parts.blocks[0]))
    return products + 4 * reach * config.num_attention_heads * config.head_dim


def head_work(model, rows):
    """Return the operations of the head."""
    return 2 * rows * model.module.get_output_embeddings().weight.numel()


@torch.no_grad()
def products_only(model, tokens_by_block, head_rows):
    """Make a run of the matrix products alone, and count their operations.

    Args:
        model: whose own matrices are multiplied.
        tokens_by_block: how many tokens go through each block.
        head_rows: how many rows go through the head.
    """
    most = max(*tokens_by_block, 1)
    widths = {part.in_features for block in model.parts.blocks for part in linears(block)} | {model.d_model}
    inputs = {width: torch.randn(most, width) for width in widths}
    head = model.module.get_output_embeddings().weight
    rows = torch.randn(max(head_rows, 1), model.d_model)

    def run():
        for block, tokens in zip(model.parts.blocks, tokens_by_block, strict=True):
            for part in linears(block):
                functional.linear(inputs[part.in_features][:tokens], part.weight)
        for chunk in rows[:head_rows].split(model.head_rows):
            functional.linear(chunk, head)

    work = sum(block_work(model, tokens, 0) for tokens in tokens_by_block) + head_work(model, head_rows)
    return run, work


@contextmanager
def one_batch(module, tokens):
    """Let a module of the engine run so many tokens at once on a CPU."""
    kept, module.CPU_TOKENS = module.CPU_TOKENS, tokens
    try:
        yield
    finally:
        module.CPU_TOKENS = kept


def patched(model, text, rows):
    """Return a patched pass with scores, its useful operations, its tokens by block and its rows at the head."""
    prompt = make_prompt(model, text, "x")
    passes = PatchedPass(model, prompt, fastest_mode(model, prompt))
    targets = torch.arange(rows) * model.n_layers // rows
    vectors = torch.randn(rows, model.d_model, generator=torch.Generator().manual_seed(0))
    tokens = choice_tokens(model)
    length = len(prompt.ids)
    reach = sum(position + 1 for position in range(prompt.position, length))
    live = [int((targets <= block).sum()) for block in range(model.n_layers)]
    work = head_work(model, rows) + sum(block_work(model, n * (length - prompt.position), n * reach) for n in live)

    def run():
        # All rows in one batch, as far as the memory budget allows: the engine's own batches are smaller.
        with one_batch(engine, rows * (length - prompt.position)):
            return model.score_tokens(passes.final_residuals(vectors, targets), tokens)

    return run, work, [n * (length - prompt.position) for n in live], rows


def captured(model, items, tokens_per_batch):
    """Return a capture at every layer, its useful operations, and its tokens by block for each of its batches."""
    readings = [find_site(model, item) for item in items]
    lengths = [len(reading.ids) for reading in set(readings)]
    work = model.n_layers * block_work(model, sum(lengths), sum(n * (n + 1) // 2 for n in lengths))

    def run():
        with one_batch(residuals, tokens_per_batch):
            return capture(model, readings, range(model.n_layers + 1))

    return run, work, sum(lengths)


def share(run, work, products, product_work, repeats):
    """Return the two rates in GFLOP/s and their ratio, as cells, after a warm-up."""
    run(), products()
    timings = interleaved({"run": clocked(run), "products": clocked(products)}, repeats)
    rate = work / timings["run"].median / 1e9
    best = product_work / timings["products"].median / 1e9
    return timings["run"], f"{rate:.1f}", f"{best:.1f}", f"{rate / best:.1%}"


def kind_of(event, inside):
    """Return which kind of work an operation is, from its name and the labelled module around it."""
    name = event.name.removeprefix("aten::")
    if any(name == product or name.startswith(("mkl", "addmm")) for product in PRODUCTS):
        return "matrix products"
    if "attention" in name:
        return "attention"
    if inside == "self_attn":
        return "copies in attention (keys, values, rotary halves)" if name in COPIES else "rotary"
    if inside == "norm":
        return "norms"
    if inside == "mlp":
        return "activation"
    return "residual sums and copies" if inside == "block" else "outside blocks: joining rows, log-sum-exp, ranks"


def labels(model):
    """Mark norms, attention, feed-forward and blocks for the profiler; return the handles of the hooks."""
    handles = []
    for name, module in model.module.named_modules():
        last = name.rsplit(".", 1)[-1]
        label = "norm" if last.endswith("norm") else last if last in ("self_attn", "mlp") else None
        label = "block" if any(module is block for block in model.parts.blocks) else label
        if label is None:
            continue
        open_now = []

        def enter(_module, _args, label=label, open_now=open_now):
            open_now.append(record_function(f"part:{label}"))
            open_now[-1].__enter__()

        def leave(_module, _args, _out, open_now=open_now):
            open_now.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return handles


def profiled(model, run):
    """Return the share of time of each kind of work in one run, and of what is no operation of torch at all."""
    handles = labels(model)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            seconds, _ = clocked(run)()
    finally:
        for handle in handles:
            handle.remove()
    spent = defaultdict(float)
    for event in seen.events():
        if not event.name.startswith("aten::"):
            continue
        around = event.cpu_parent
        while around is not None and not around.name.startswith("part:"):
            around = around.cpu_parent
        spent[kind_of(event, around.name.removeprefix("part:") if around else "")] += event.self_cpu_time_total / 1e6
    spent["Python, numpy and dispatch"] = seconds - sum(spent.values())
    return {kind: value / seconds for kind, value in sorted(spent.items(), key=lambda pair: -pair[1])}


def show_profile(title, shares):
    """Print a profile as a table."""
    table = Table(title, "share")
    for kind, value in shares.items():
        table.add(kind, f"{value:.1%}")
    print(f"\n{table}", flush=True)


def show_patched(model, name, text, sizes, repeats):
    """Print the table of one prompt by rows, and the profile of the largest."""
    table = Table(
        f"patched pass, {name} prompt: rows", "seconds", "useful GFLOP/s", "products GFLOP/s", "share", "peak"
    )
    for rows in sizes:
        run, work, by_block, head_rows = patched(model, text, rows)
        cells = share(run, work, *products_only(model, by_block, head_rows), repeats)
        _, _, peak = watched(run)
        table.add(rows, *cells, "not measured" if peak is None else f"{peak / 2**20:.0f} MiB")
    print(f"\n{table}", flush=True)
    show_profile(f"{name} prompt, {rows} rows", profiled(model, run))


def show_capture(model, count, sizes, repeats):
    """Print the table of the capture by tokens a batch, and the profile of the default."""
    items = source_items(count)
    table = Table("capture: tokens a batch", "seconds", "useful GFLOP/s", "products GFLOP/s", "share")
    for size in sizes:
        run, work, tokens = captured(model, items, size)
        whole, rest = divmod(tokens, size)
        products, product_work = products_only(model, [min(size, tokens)] * model.n_layers, 0)
        last, last_work = products_only(model, [rest] * model.n_layers, 0)

        def all_products(products=products, last=last, whole=whole):
            for _ in range(whole):
                products()
            last()

        table.add(size, *share(run, work, all_products, whole * product_work + last_work, repeats))
    print(f"\n{table}", flush=True)
    default = residuals.CPU_TOKENS
    show_profile(f"capture, {default} tokens a batch", profiled(model, captured(model, items, default)[0]))


def main() -> None:
    """Print tables and profiles."""
    given = options(__doc__, repeats=5).parse_args()
    model = load()
    heading("Arithmetic")
    sizes = (60, 240) if given.quick else (30, 120, 240, 480, 960, 1920, 3840)
    for name, text in (("short", SHORT_PROMPT), ("long", LONG_PROMPT)):
        show_patched(model, name, text, sizes, given.repeats)
    show_capture(model, 20 if given.quick else 100, (128, 512) if given.quick else (64, 128, 256, 512, 1024, 2048),
                 given.repeats)  # fmt: skip


if __name__ == "__main__":
    main()
