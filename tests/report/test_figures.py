"""Figures for papers: what is in them, in which files, and what they do with strange runs."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.figures.compare import plot_comparison
from lensbench.report.figures.gap import plot_gap
from lensbench.report.figures.grid import grids_of, plot_grid
from lensbench.report.figures.headline import plot_headline
from lensbench.report.figures.layers import plot_layers
from lensbench.report.figures.relations import plot_relations
from lensbench.report.figures.used import plot_used
from lensbench.report.style import STYLE_FILE, WIDTHS, drawable, plot_style, save_figure
from lensbench.report.view import View
from lensbench.report.writing import FigureRequest, check_asked, plot_run, write_figures
from lensbench.results.verdicts import USED, VERDICTS

STRANGE = (
    "\u05e2\u05d1\u05e8\u05d9\u05ea",
    "\U0001f3f3\ufe0f\u200d\U0001f308 flags",
    "<script>alert(1)</script>",
    "$x$ of $y$",
    "a\nb",
)


def made_up(layers: int = 4, relations: tuple[str, ...] = ("capital", "currency"), sites: tuple[str, ...] = ("answer",),
            methods: tuple[str, ...] = ("patchscope", "my_lens"), shift: float = 0.0) -> pd.DataFrame:  # fmt: skip
    """A summary of plain curves, without the bootstrap that real ones take."""
    keys = pd.MultiIndex.from_product(
        [["all", *relations], sites, methods, ["none", "input_only"], range(layers), ["uses_activation", "beats_text"]],
        names=["relation", "site", "inspector", "baseline", "layer", "question"],
    )
    frame = keys.to_frame(index=False)
    frame = frame[(frame["baseline"] == "none") | (frame["question"] == "beats_text")]
    height = np.where(frame["baseline"] == "none", 0.2 + 0.6 * frame["layer"] / max(1, layers - 1), 0.5) + shift
    own = frame["baseline"] == "none"
    frame = frame.assign(
        model="org/tiny", verbalizer="org/tiny", task="country_facts", rule="fixed", n=40, subjects=40,
        accuracy=height, accuracy_corrected=height, ci_low=height - 0.1, ci_high=height + 0.1,
        chance=np.where(frame["relation"] == "all", 0.0, 0.125), gap=np.where(own, height - 0.5, np.nan),
        gap_low=np.where(own, height - 0.6, np.nan), gap_high=np.where(own, height - 0.4, np.nan),
        strongest_baseline=np.where(own, "input_only", None),
        verdict=np.where(own & (height > 0.6), "uses the activation", "inconclusive"),
    )  # fmt: skip
    return frame.astype({"layer": "Int16"})


def records_of(
    attempts: dict[str, float], inspector: str = "patchscope", layers: tuple[int, ...] = (0, 2, 4)
) -> pd.DataFrame:
    """Records of one item a relation and layer, right as often as the attempt says."""
    rows = [
        {"task": "country_facts", "relation": relation, "site": "subject", "inspector": inspector, "baseline": "none",
         "model": "org/tiny", "subject": f"{i}",
         "layer": layer, "attempt": attempt, "item": f"{relation}{i}", "correct": float(i < 10 * rate),
         "correct_corrected": float(i < 10 * rate), "chance": 0.2}
        for relation in ("capital", "currency") for layer in layers for attempt, rate in attempts.items()
        for i in range(10)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int16", "attempt": "category", "inspector": "category"})


def texts(figure: Figure) -> str:
    found = [artist.get_text() for artist in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(text for text in found if text)


@pytest.mark.parametrize("width", [*WIDTHS, "4.5"])
def test_figures_are_as_wide_as_asked(width: str) -> None:
    expected = WIDTHS.get(width, 4.5)
    for figure in (plot_layers(made_up(), width=width), plot_gap(made_up(), width=width),
                   plot_relations(made_up(), width=width),
                   plot_comparison(made_up(), made_up(), width=width)):  # fmt: skip
        assert figure.get_figwidth() == pytest.approx(expected)


def test_a_gap_has_a_panel_for_each_question_that_was_asked() -> None:
    figure = plot_gap(made_up())
    assert len(figure.axes) == 2
    assert "Does it use the activation?" in texts(figure)
    assert "Does it beat the text?" in texts(figure)
    assert "target-specific" not in texts(figure)
    assert len(plot_gap(made_up(), question="beats_text").axes) == 1
    assert len(plot_gap(made_up(), metric="gap:beats_text").axes) == 1
    with pytest.raises(UsageError, match="did you mean 'beats_text'"):
        plot_gap(made_up(), question="beat_text")
    with pytest.raises(LensbenchError, match="no baseline of target_specific was run"):
        plot_gap(made_up(), question="target_specific")


def test_a_grid_holds_the_accuracy_of_each_pair_of_layers() -> None:
    records = records_of(
        {"target_layer=0": 0.6, "target_layer=12": 1.0, "target_layer=3": 0.2, "target_layer=same": 0.4}
    )
    (grid,) = grids_of(records, View(relation="capital"))
    assert grid.target == ("0", "3", "12", "same")
    assert grid.source == (0, 2, 4)
    np.testing.assert_allclose(grid.accuracy[:, 1], [0.6, 0.2, 1.0, 0.4])
    (total,) = grids_of(records, View(relation="all"))
    np.testing.assert_allclose(total.accuracy[:, 0], [0.5, 0.0, 1.0, 0.25])
    figure = plot_grid(records)
    assert "framed: 1.00 at 0 \u2192 12" in texts(figure)
    assert "Source layer (read)" in texts(figure)


def test_kinds_of_attempts_have_grids_of_their_own() -> None:
    both = {f"{kind} x6 -> {layer}": 0.5 for kind in ("mlp", "hidden") for layer in (0, 3)}
    names = [grid.name for grid in grids_of(records_of(both, "superscopes"), View(relation="all"))]
    assert names == ["superscopes, hidden x6", "superscopes, mlp x6"]
    places = [
        grid.target for grid in grids_of(records_of({"hop->hop@1": 1.0, "hop->hop@3": 0.5}), View(relation="all"))
    ]
    assert places == [("1", "3")]


def test_a_run_without_target_layers_has_no_grid() -> None:
    with pytest.raises(LensbenchError, match="no method of the run has several target layers"):
        plot_grid(records_of({"default": 0.5}))
    with pytest.raises(UsageError, match="unknown inspector"):
        plot_grid(records_of({"target_layer=0": 0.5, "target_layer=1": 0.5}), inspector="probe")


def test_a_comparison_has_both_runs_in_each_panel() -> None:
    figure = plot_comparison(made_up(), made_up(shift=0.1), names=("old", "new"), relation="capital")
    assert "old (dashed)" in texts(figure)
    for axis in figure.axes:
        curves = [line for line in axis.lines if len(line.get_xdata()) == 4 and line.get_linewidth()]
        heights = sorted(round(float(line.get_ydata()[0]), 3) for line in curves)
        assert heights == [0.2, 0.3]
    other = made_up(methods=("tuned_lens",))
    with pytest.raises(LensbenchError, match="before has tuned_lens, after my_lens, patchscope"):
        plot_comparison(other, made_up())


@pytest.mark.parametrize("draw", [plot_layers, plot_gap, plot_relations])
def test_an_empty_summary_is_told(draw) -> None:
    with pytest.raises(LensbenchError, match="the run has no results"):
        draw(made_up().iloc[:0])


@pytest.mark.parametrize("layers", [1, 200])
def test_one_layer_and_two_hundred_are_drawn(layers: int, tmp_path: Path) -> None:
    summary = made_up(layers)
    for number, figure in enumerate(
        (plot_layers(summary), plot_gap(summary), plot_relations(summary), plot_comparison(summary, summary))
    ):
        (path,) = save_figure(figure, [tmp_path / f"{number}.png"])
        assert path.stat().st_size > 5000
    (axis,) = plot_layers(summary, metric="gap:beats_text").axes
    assert axis.get_xlim()[1] >= layers - 1


def test_sixty_relations_and_strange_names_are_drawn(tmp_path: Path) -> None:
    """A glyph that no font has, or a formula in a name, would be a warning, which is an error here."""
    names = (*STRANGE, *(f"relation_{i}" for i in range(55)))
    summary = made_up(3, names, methods=("my_lens",))
    figure = plot_relations(summary)
    assert sum(axis.axison for axis in figure.axes) == 61
    assert figure.get_figheight() < 25
    assert "<script>alert(1)</script>" in texts(figure)
    with plot_style():
        figure.draw_without_rendering()
    for name in STRANGE:
        save_figure(plot_gap(summary, relation=name, question="beats_text"), [tmp_path / "one.svg"])
        assert "<script>" not in (tmp_path / "one.svg").read_text()


def test_what_cannot_be_drawn_becomes_a_square() -> None:
    assert drawable("\U0001f1eb\U0001f1f7 flag") == "\u25a1 flag"
    assert drawable("$5 and $6\nmore") == r"\$5 and \$6 more"
    assert drawable("\u05e9\u05dc\u05d5\u05dd Z\u00fcrich") == "\u05e9\u05dc\u05d5\u05dd Z\u00fcrich"


def test_fonts_are_whole_in_pdf_files(tmp_path: Path) -> None:
    save_figure(plot_layers(made_up()), [tmp_path / "a.pdf"])
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_a_figure_is_drawn_into_the_axes_of_the_caller() -> None:
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, axes = plt.subplots(1, 3)
    assert plot_layers(made_up(), ax=axes[0]) is figure
    plot_gap(made_up(), ax=axes[1], question="beats_text")
    plot_comparison(made_up(), made_up(), ax=axes[2], inspector="my_lens")
    assert all(axis.lines for axis in axes)
    assert len(figure.axes) == 3
    with pytest.raises(UsageError, match="one axes has room for one question"):
        plot_gap(made_up(), ax=axes[1])
    plt.close(figure)


def test_our_style_is_one_that_matplotlib_reads() -> None:
    with mpl.rc_context():
        mpl.style.use("lensbench.report.lensbench")
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert STYLE_FILE.is_file()


def test_a_figure_shows_itself_in_a_notebook() -> None:
    assert plot_layers(made_up())._repr_png_().startswith(b"\x89PNG")


def test_what_is_left_open_is_asked_for() -> None:
    both = made_up(sites=("subject", "answer"))
    with pytest.raises(UsageError, match="several sites: give site, one of answer, subject"):
        plot_layers(both)
    with pytest.raises(UsageError, match="did you mean 'answer'"):
        plot_layers(both, site="anwser")
    with pytest.raises(UsageError, match="unknown option of a figure 'sites'"):
        plot_layers(both, sites="answer")
    with pytest.raises(UsageError, match="width 'wide': expected column"):
        plot_layers(made_up(), width="wide")


class Results:
    """A run, as far as figures see it."""

    def __init__(self, summary: pd.DataFrame) -> None:
        self.summary = summary
        self.records = self.metrics = summary.iloc[:0]
        self.summaries = {("country_facts", "capital"): "country \u2192 capital"}


def test_each_site_left_open_gets_a_file(tmp_path: Path) -> None:
    run = Results(made_up(sites=("subject", "answer")))
    written = write_figures(run, FigureRequest("layers", {}), tmp_path / "curves.svg")
    assert [path.name for path in written] == ["curves-subject.svg", "curves-answer.svg"]
    (path,) = write_figures(run, FigureRequest("gap", {"site": "answer", "relation": "capital"}), tmp_path / "folder")
    assert path.name == "gap-country_facts-capital-answer.pdf"
    assert re.search(rb"%PDF", path.read_bytes())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (FigureRequest("layer", {}), "did you mean 'layers'"),
        (FigureRequest("layers", {"metric": "acuracy"}), "did you mean 'accuracy'"),
        (FigureRequest("layers", {}, inspector="probe"), "--inspector is for --figure grid, compare, headline"),
        (FigureRequest("compare", {}), "give it with --before RUN"),
    ],
)
def test_what_does_not_go_together_is_refused_first(asked: FigureRequest, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_asked(asked, None)
    with pytest.raises(LensbenchError, match=r"\.png, \.svg, \.pdf"):
        check_asked(FigureRequest("layers", {}), Path("figure.gif"))


def test_run_plots_of_many_relations_are_whole(tmp_path: Path) -> None:
    written = plot_run(made_up(3, STRANGE[:3], ("subject", "answer"), ("my_lens",)), tmp_path)
    assert len(written) == 6


def test_a_headline_shades_exactly_the_layers_of_the_claim_and_says_it() -> None:
    summary = made_up(31)
    own = (summary["baseline"] == "none") & (summary["question"] == "uses_activation")
    held = summary["layer"].isin([3, 4, 9])
    summary["verdict"] = np.where(own & held, "uses the activation", "inconclusive")
    shuffled = summary[summary["baseline"] == "input_only"].assign(
        baseline="shuffled", question="uses_activation", accuracy_corrected=0.1
    )
    summary = pd.concat([summary, shuffled], ignore_index=True)
    figure = plot_headline(summary.assign(p_value=0.5, detectable_gap=0.2, relations=1), relation="capital",
                           summaries={("country_facts", "capital"): "country \u2192 capital"})  # fmt: skip
    (axis,) = figure.axes
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches]
    assert spans == [(2.5, 4.5), (8.5, 9.5)]
    said = " ".join(texts(figure).split())
    assert (
        "country \u2192 capital: My lens uses the activation at layers 3-4, 9; at its best layer, 40 subjects" in said
    )
    assert axis.get_legend() is None
    for name in ("my lens", "the same model given only the name", "another subject's activation", "chance"):
        assert name in [text.get_text() for text in axis.texts]
    nothing = plot_headline(
        summary.assign(verdict="inconclusive", p_value=0.5, detectable_gap=0.2, relations=1), relation="capital"
    )
    assert not nothing.axes[0].patches
    assert "do not tell whether my lens uses the activation" in " ".join(texts(nothing).split())


def test_a_headline_is_of_one_method_and_of_no_gap() -> None:
    summary = made_up().assign(p_value=0.5, detectable_gap=0.2, relations=1)
    assert "patchscope" in texts(plot_headline(summary, inspector="patchscope"))
    with pytest.raises(UsageError, match="did you mean 'my_lens'"):
        plot_headline(summary, inspector="my_lense")
    with pytest.raises(UsageError, match="expected accuracy_corrected or accuracy; --figure gap draws gaps"):
        plot_headline(summary, metric="gap:beats_text")


def test_effects_stand_beside_the_accuracy_and_filled_where_the_direction_is_used() -> None:
    summary = made_up(methods=("my_lens",), relations=("capital",))
    own = summary[(summary["baseline"] == "none") & (summary["question"] == "beats_text")]
    asked = own.assign(question="used_by_model", verdict=np.where(own["layer"] > 1, VERDICTS[USED], "no ceiling"))
    rows = [
        {"task": "country_facts", "site": "answer", "relation": "capital", "inspector": "my_lens", "layer": layer,
         "baseline": "intervention", "metric": "share_of_interchange", "rule": rule, "value": 0.1 * layer,
         "ci_low": 0.1 * layer - 0.1, "ci_high": 0.1 * layer + 0.1}
        for layer in (1, 2, 3) for rule in ("along", "random_direction")
    ]  # fmt: skip
    choice = {"relation": "capital", "site": "answer"}
    (axis,) = plot_used(pd.concat([summary, asked]), pd.DataFrame(rows), **choice).axes
    filled = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert [list(line.get_xdata()) for line in filled] == [[2.0, 3.0]]
    accuracy, *_ = axis.lines
    assert list(accuracy.get_ydata()) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    with pytest.raises(LensbenchError, match="--baselines all,intervention"):
        plot_used(summary, pd.DataFrame(rows)[:0], **choice)
