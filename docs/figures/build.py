"""Draw the figures of the documentation from run folders.

python docs/figures/build.py RUN [RUN...]       # docs/methods.md: one a method, beside its own baselines
python docs/figures/build.py --headline RUN     # docs/figures/headline.png

The runs are those of examples/methods.toml and examples/chains.toml; the headline is of the command in README.md.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lensbench.report.frame import frame
from lensbench.report.labels import label_lines, settle
from lensbench.report.panels import draw_baselines, draw_methods, not_drawn
from lensbench.report.style import METHOD_COLOURS, OKABE_ITO, new_figure, plot_style, save_figure
from lensbench.report.wording import readable
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
        figure = new_figure((1.0 + 2.1 * len(relations), 2.2))
        axes = figure.subplots(1, len(relations), squeeze=False, sharey=True)[0]
        drawn = []
        for axis, relation in zip(axes, relations, strict=True):
            here = rows[rows["relation"] == relation]
            draw_methods(axis, here, METRIC, {method: colour}, width=1.2)
            drawn.append(draw_baselines(axis, here, method, METRIC, colour))
            axis.set_title(readable(relation), fontsize=8)
            axis.set_xlabel("Layer")
        axes[0].set_ylabel("Accuracy (prior-corrected)")
        chosen = ", attempt selected on the other folds" if rule == SELECTED else ""
        frame(figure, title=f"{readable(method)}, read at {site}{chosen}", note=not_drawn(drawn))
        settle(axes[0])
        for axis, one in zip(axes, drawn, strict=True):
            label_lines(axis, one.named)
    return figure


def headline(path: str) -> None:
    """Draw the picture that the documentation begins with."""
    choice = {"relation": "country_capital", "site": "subject", "inspector": "patchscope", "width": "text"}
    save_figure(load_run(path).plot("headline", **choice), [HERE / "headline.png"])


def main(runs: list[str]) -> None:
    """Draw one figure a method, from the run that has it; or the headline alone."""
    if runs[:1] == ["--headline"]:
        headline(*runs[1:])
        return
    for path in runs:
        summary = load_run(path).summary
        for method in sorted(summary["inspector"].unique()):
            save_figure(figure_of(summary, method), [HERE / f"method-{method.replace('_', '-')}.png"])


if __name__ == "__main__":
    main(sys.argv[1:])
