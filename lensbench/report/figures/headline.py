"""One method beside the model that is given only the name, and another subject's activation; its claim is the title."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import UsageError, unknown_name
from lensbench.report.figure import Choice, Figure, Results
from lensbench.report.frame import frame
from lensbench.report.labels import Named, label_lines, settle
from lensbench.report.panels import LAYER_LABEL, draw_curve, draw_methods
from lensbench.report.sentences import BASELINES_IN_WORDS, claim
from lensbench.report.style import CHANCE_COLOUR, NARROW, SOFT, colours, drawable, label, new_figure, plot_style
from lensbench.report.view import Y_LABELS, View, methods_in, view_of
from lensbench.results.records import ALL, CORRECTED, NO_BASELINE
from lensbench.results.summary import best_layers
from lensbench.results.verdicts import ACTIVATION, VERDICTS

_TEXT, _SHUFFLED = "input_only", "shuffled"
_SHADE = "#e9efe4"
_DASHES = {_TEXT: (0, (4.5, 1.6)), _SHUFFLED: (0, (1.4, 1.4))}
_NAMES = {_SHUFFLED: "another subject's activation"}
_NOTE = "Shade of the curve: 95 % band at all layers at once."
_IDENTITY = " A claim at layer 0 is about the identity of the token."


def plot_headline(
    summary: pd.DataFrame,
    *,
    inspector: str | None = None,
    summaries: Mapping[tuple[str, str], str] | None = None,
    **choice: Unpack[Choice],
) -> Drawing:
    """Draw one method over layers, with the names of all lines beside them and its verdicts in words as the title.

    Beside it are the model that is given only the name in text (or else the strongest reader of the text) and the
    method on another subject's activation. The layers at which it uses the activation are shaded.

    Args:
        summary: of one run.
        inspector: the method; by default the one with the highest score there.
        summaries: (task, relation) -> what leads to what, such as "country → capital".
        choice: what is shown, and how wide; see `View`.

    Raises:
        UsageError: a choice that the summary leaves open, a method that it does not have, or a gap as the metric.
        LensbenchError: nothing in the summary to draw.
    """
    view = view_of(choice).resolved(summary, "task", "relation", "site")
    if view.is_gap:
        raise UsageError(f"metric {view.metric!r}: expected accuracy_corrected or accuracy; --figure gap draws gaps")
    rows = view.chosen(summary)
    first = _first(rows, view, inspector)
    own = rows[rows["inspector"] == first["inspector"]]
    with plot_style():
        figure = new_figure((view.inches, 2.0 if view.inches < NARROW else 2.6))
        axis = figure.subplots()
        named = [_draw_method(axis, own, view), *_draw_others(axis, own, view)]
        _shade(axis, own)
        what = (summaries or {}).get((view.task or "", view.relation or ""), label(view.relation or ""))
        what = label(view.task or "") if view.relation == ALL else drawable(what)
        title = f"{what}: {claim(first)}" if view.title else ""
        counted = view.counted(summary, str(first["inspector"]))
        identity = _IDENTITY if str(first.get(f"{ACTIVATION}_holds") or "").startswith("0") else ""
        frame(figure, title=title, note=f"{counted}, read at {label(view.site or '')}. {_NOTE}{identity}")
        settle(axis)
        label_lines(axis, named)
    return figure


def _first(rows: pd.DataFrame, view: View, inspector: str | None) -> dict[Any, Any]:
    """The method that is named, or the one with the highest score, at its best layer."""
    if inspector is not None and inspector not in (methods := methods_in(rows)):
        raise unknown_name("inspector of this run", inspector, methods)
    own = rows if inspector is None else rows[rows["inspector"] == inspector]
    rules = dict.fromkeys(own["inspector"].astype(str), view.rule)
    best = best_layers(own, CORRECTED if view.metric == "accuracy_corrected" else "raw", rules)
    return best.sort_values(view.metric, ascending=False, kind="stable").to_dict("records")[0]


def _draw_method(axis: Axes, own: pd.DataFrame, view: View) -> Named:
    method = str(own["inspector"].iloc[0])
    palette = colours([method])
    draw_methods(axis, own, view.metric, palette, 2.0)
    axis.set_ylabel(view.y_label if view.total else Y_LABELS[view.metric], fontsize=7)
    axis.set_xlabel(LAYER_LABEL, fontsize=7)
    return Named(axis.lines[0], label(method), {"color": palette[method], "fontsize": 9, "fontweight": "bold"})


def _draw_others(axis: Axes, own: pd.DataFrame, view: View) -> Iterator[Named]:
    """Draw the reader of the text, the method on another activation, and name chance."""
    look = {"color": "#3b3b3b", "lw": 1.2, "zorder": 3}
    texts = own[(own["question"] == "beats_text") & (own["baseline"] != NO_BASELINE)]
    means = texts.groupby("baseline", observed=True)[view.metric].mean().sort_values(ascending=False, kind="stable")
    reader = [_TEXT] if _TEXT in means.index else [str(name) for name in means.index[:1]]
    for name in (*reader, _SHUFFLED):
        curve = own[own["baseline"] == name].sort_values("layer")
        if len(curve):
            x, y = curve["layer"].to_numpy(dtype=float), curve[view.metric].to_numpy(dtype=float)
            drawn = draw_curve(axis, x, y, ls=_DASHES.get(name, _DASHES[_TEXT]), **look)
            yield Named(drawn, _in_words(name, own), {"color": "#3b3b3b", "fontsize": 7})
    chance = next(line for line in axis.lines if line.get_color() == CHANCE_COLOUR)
    yield Named(chance, "chance", {"color": SOFT, "fontsize": 6.5})


def _in_words(name: str, own: pd.DataFrame) -> str:
    if name == _TEXT:
        same = (own["model"].astype(str) == own["verbalizer"].astype(str)).all()
        return f"the {'same model' if same else 'verbalizer'} given only the name"
    return _NAMES.get(name, BASELINES_IN_WORDS.get(name, label(name)))


def _shade(axis: Axes, own: pd.DataFrame) -> None:
    """Shade the layers at which the claim holds, and say above them what it is."""
    asked = own[(own["baseline"] == NO_BASELINE) & (own["question"] == ACTIVATION)].dropna(subset=["layer"])
    asked = asked.sort_values("layer")
    layers = asked["layer"].to_numpy(dtype=float)
    spans = list(_spans(layers, (asked["verdict"] == VERDICTS[ACTIVATION]).to_numpy()))
    for low, high in spans:
        axis.axvspan(low, high, color=_SHADE, lw=0, zorder=0)
    if spans:
        low, high = max(spans, key=lambda span: span[1] - span[0])
        left = low + high < layers[0] + layers[-1]
        axis.annotate(VERDICTS[ACTIVATION], (low if left else high, 1.0), xycoords=("data", "axes fraction"),
                      xytext=(0, 2), textcoords="offset points", ha="left" if left else "right", va="bottom",
                      fontsize=7, color="#4c6b35")  # fmt: skip


def _spans(layers: np.ndarray, holds: Sequence[bool] | np.ndarray) -> Iterator[tuple[float, float]]:
    """Where a claim holds without a break, from half way to the layer before to half way to the one after."""
    edges = np.concatenate([layers[:1] - 0.5, (layers[1:] + layers[:-1]) / 2, layers[-1:] + 0.5])
    turns = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
    for start, end in zip(turns[::2], turns[1::2], strict=True):
        yield float(edges[start]), float(edges[end])


def _draw_run(run: Results, **options: Any) -> Drawing:
    return plot_headline(run.summary, summaries=run.summaries, **options)


FIGURE = Figure(
    title="Headline",
    about="One method beside the model that is given only the name.",
    draw=_draw_run,
    options=frozenset({"inspector"}),
)
