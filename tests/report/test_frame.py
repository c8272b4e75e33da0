"""Every text of every figure is on the canvas and on no other text, at each width, with four methods and 31 layers."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from lensbench.report.figures.compare import plot_comparison
from lensbench.report.figures.gap import plot_gap
from lensbench.report.figures.grid import plot_grid
from lensbench.report.figures.headline import plot_headline
from lensbench.report.figures.layers import plot_layers
from lensbench.report.figures.relations import plot_relations
from lensbench.report.frame import fitted, frame
from lensbench.report.style import new_figure, plot_style
from tests.report.test_figures import made_up, records_of

METHODS = ("chain_of_thought_patchscope", "logit_lens", "probe", "tuned_lens")
BASELINES = {
    "shuffled": ("uses_activation", 0.14), "question_only": ("uses_activation", 0.13), "mean": ("uses_activation", 0.2),
    "input_only": ("beats_text", 0.62), "embedding": ("beats_text", 0.58), "input_classifier": ("beats_text", 0.4),
    "choices_only": ("beats_text", 0.12),
}  # fmt: skip


def study(methods: tuple[str, ...] = METHODS, layers: int = 31, relations: int = 5) -> pd.DataFrame:
    """A summary of four methods that cross one another, with the wide intervals of 14 items and seven baselines."""
    names = ["all", "person_century_of_birth_in_the_calendar", *(f"relation_{i}" for i in range(relations - 1))]
    rows = made_up(layers, tuple(names[1:]), methods=methods)
    rng = np.random.default_rng(0)
    own = rows[rows["baseline"] == "none"].copy()
    place = own["inspector"].map({name: i for i, name in enumerate(methods)}).astype(float)
    at = own["layer"].astype(float)
    height = (0.5 + 0.3 * np.sin(at / 6 + place) + rng.normal(0, 0.04, len(own))).clip(0.02, 0.98)
    limits = {"ci_low": (height - 0.25).clip(0), "ci_high": (height + 0.25).clip(upper=1)}
    gaps = {
        "gap": height - 0.6,
        "gap_low": height - 0.9,
        "gap_high": height - 0.3,
        "p_value": 0.01,
        "detectable_gap": 0.3,
    }
    claims = own["question"].map({"uses_activation": "uses the activation", "beats_text": "beats this text reader"})
    verdict = claims.where(height > 0.6, "inconclusive")
    own = own.assign(accuracy=height, accuracy_corrected=height, verdict=verdict, **limits, **gaps)
    whole = own["relation"] == "all"
    own = own.assign(n=np.where(whole, 70, 14), subjects=np.where(whole, 66, 14), relations=np.where(whole, 5, 1))
    rivals = [
        own[own["question"] == question].assign(
            baseline=name, accuracy=value, accuracy_corrected=value, verdict=None, gap=np.nan
        )
        for name, (question, value) in BASELINES.items()
    ]
    return pd.concat([own, *rivals], ignore_index=True)


def grids(width: str) -> Figure:
    records = records_of({f"target_layer={layer}": layer / 31 for layer in range(0, 31, 2)}, layers=tuple(range(31)))
    return plot_grid(records, width=width)


DRAWN: dict[str, Callable[[str], Figure]] = {
    "layers": lambda width: plot_layers(study(), width=width),
    "one relation": lambda width: plot_layers(study(), width=width, relation="person_century_of_birth_in_the_calendar"),
    "a gap alone": lambda width: plot_layers(study(), width=width, metric="gap:beats_text"),
    "twelve methods": lambda width: plot_layers(study(tuple(f"my_own_lens_{i}" for i in range(12))), width=width),
    "gap": lambda width: plot_gap(study(), width=width),
    "one question": lambda width: plot_gap(study(), width=width, question="beats_text"),
    "relations": lambda width: plot_relations(study(), width=width, site="answer"),
    "compare": lambda width: plot_comparison(
        study(), study(), names=("a_run_with_a_name_of_some_length", "20260801-after"), width=width
    ),
    "grid": grids,
    "headline": lambda width: plot_headline(study(), width=width),
    "headline of one": lambda width: plot_headline(
        study(), width=width, relation="person_century_of_birth_in_the_calendar", inspector="tuned_lens"
    ),
}


def texts_of(figure: Figure) -> list[Text]:
    """All texts that are seen."""
    hidden = {id(text) for axis in figure.axes if not axis.axison for text in axis.findobj(Text)}
    found = figure.findobj(lambda one: isinstance(one, Text) and one.get_visible() and bool(one.get_text().strip()))
    unused = {id(text) for axis in figure.axes for text in _outside_limits(axis)}
    return [text for text in found if id(text) not in hidden | unused]


def _outside_limits(axis: Axes) -> list[Text]:
    """Labels of ticks that matplotlib keeps but does not draw."""
    drawn = {id(label) for one in (axis.xaxis, axis.yaxis) for tick in one._update_ticks()
             for label in (tick.label1, tick.label2)}  # fmt: skip
    every = [label for one in (axis.xaxis, axis.yaxis) for tick in (*one.get_major_ticks(), *one.get_minor_ticks())
             for label in (tick.label1, tick.label2)]  # fmt: skip
    return [label for label in every if id(label) not in drawn]


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_leaves_the_canvas_or_lies_on_another(name: str, width: str) -> None:
    with plot_style():
        figure = DRAWN[name](width)
        figure.draw_without_rendering()
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts_of(figure)]
        legends = [one.get_window_extent() for one in figure.findobj(Legend)]
    assert len(boxes) > 8
    canvas = figure.bbox.padded(0.5)
    for text, box in boxes:
        assert canvas.x0 <= box.x0, text
        assert box.x1 <= canvas.x1, text
        assert canvas.y0 <= box.y0, text
        assert box.y1 <= canvas.y1, text
    for (text, box), (other, second) in combinations(boxes, 2):
        assert not box.padded(-0.5).overlaps(second.padded(-0.5)), f"{text!r} lies on {other!r}"
    assert all(one.y0 >= 0 and one.x1 <= figure.bbox.x1 for one in legends)
    assert all(one.height < figure.bbox.height / 5 for one in legends)


@pytest.mark.parametrize("draw", [plot_layers, plot_gap, plot_relations, plot_headline])
@pytest.mark.parametrize("title", [True, False])
def test_a_figure_says_its_model_items_and_relations_with_or_without_a_title(
    draw: Callable[..., Figure], title: bool
) -> None:
    said = " ".join(" ".join(text.get_text() for text in texts_of(draw(study(), title=title))).split())
    assert "org/tiny, " in said
    assert "66 subjects" in said
    assert "70 items" in said
    assert "5 of 5 relations" in said


def test_methods_can_be_told_apart_without_colours() -> None:
    top = plot_layers(study()).axes[0]
    marked = {line.get_marker() for line in top.lines if line.get_marker() not in ("", "None")}
    assert len(marked) == len(METHODS)
    whiskers = [sorted(segment[0][0] for segment in one.get_segments()) for one in top.collections]
    assert len(whiskers) == len(METHODS)
    assert not set(whiskers[0]) & set(whiskers[1]), "they stand at layers of their own"


def test_a_panel_has_three_baselines_with_their_names_at_the_lines() -> None:
    figure = plot_layers(study(), relation="relation_0")
    for panel in figure.axes[1:]:
        assert [text.get_text() for text in panel.texts] == ["input only", "embedding", "input classifier"]
        assert sum(line.is_dashed() for line in panel.lines) == 4, "three, and chance"
        assert panel.get_legend() is None
    note = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "Not drawn where weaker: mean." in note
    assert "Not drawn where at chance: choices only, question only, shuffled." in note


def test_a_text_is_broken_into_even_lines_that_fit() -> None:
    with plot_style():
        figure = new_figure((3.3, 1.0))
        lines = fitted(figure, "one two three four five six seven eight nine ten " * 3, 1.5, fontsize=8).split("\n")
        widths = [figure.text(0, 0, line, fontsize=8).get_window_extent().width / figure.dpi for line in lines]
    assert max(widths) <= 1.5
    assert min(widths) > 0.5 * max(widths)


def test_a_figure_grows_by_its_title_and_note() -> None:
    with plot_style():
        plain, framed = new_figure((3.3, 2.0)), new_figure((3.3, 2.0))
        for figure in (plain, framed):
            figure.subplots()
        frame(framed, title="a title " * 20, note="a note " * 30)
        heights = []
        for figure in (plain, framed):
            figure.draw_without_rendering()
            heights.append(figure.axes[0].get_window_extent().height)
    assert framed.get_figheight() > 2.5
    assert heights[1] == pytest.approx(heights[0], abs=2)
