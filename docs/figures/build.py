"""Draw the figures of docs/methods.md from run folders: one a method, beside its own rivals.

python docs/figures/build.py RUN [RUN...]

The runs are those of examples/methods.toml and examples/chains.toml.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lensbench.report.panels import draw_baselines, draw_methods
from lensbench.report.style import METHOD_COLOURS, OKABE_ITO, plot_style, readable, save_figure
from lensbench.results.arrays import FIXED, SELECTED
from lensbench.results.records import ALL
from lensbench.runs.run import load_run

HERE = Path(__file__).parent
METRIC = "accuracy_corrected"
PANELS = 4
# They say what the next token is: at `subject` nobody has asked them.
AT_ANSWER = (
    "logit_lens", "tuned_lens", "affine_lens", "relearned_unembedding", "jacobian_lens", "future_lens",
    "logit_attribution",
)  # fmt: skip


def figure_of(summary: pd.DataFrame, method: str) -> Figure:
    """Draw a method at its site, a panel a relation that it can answer; of several attempts the selected one."""
    own = summary[(summary["inspector"] == method) & (summary["relation"] != ALL)]
    best = own[own["baseline"] == "none"].groupby("site")[METRIC].mean().idxmax()
    site = "answer" if method in AT_ANSWER else best
    rule = SELECTED if (own["rule"] == SELECTED).any() else FIXED
    rows = own[(own["site"] == site) & (own["rule"] == rule)]
    scored = rows[(rows["baseline"] == "none") & rows["layer"].notna()]
    relations = sorted(scored["relation"].unique())[:PANELS]
    colour = METHOD_COLOURS.get(method, OKABE_ITO[0])
    with plot_style():
        figure = Figure(figsize=(1.0 + 2.1 * len(relations), 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(relations), squeeze=False, sharey=True)[0]
        for axis, relation in zip(axes, relations, strict=True):
            here = rows[rows["relation"] == relation]
            draw_methods(axis, here, METRIC, {method: colour}, width=1.2)
            draw_baselines(axis, here, method, METRIC, colour)
            axis.set_title(readable(relation), fontsize=8)
            axis.set_xlabel("Layer")
        axes[0].set_ylabel("Accuracy (prior-corrected)")
        chosen = ", attempt selected on the other folds" if rule == SELECTED else ""
        figure.suptitle(f"{readable(method)}, read at {site}{chosen}", x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure


def main(runs: list[str]) -> None:
    """Draw one figure a method, from the run that has it."""
    for path in runs:
        summary = load_run(path).summary
        for method in sorted(summary["inspector"].unique()):
            save_figure(figure_of(summary, method), [HERE / f"method-{method.replace('_', '-')}.png"])


if __name__ == "__main__":
    main(sys.argv[1:])
