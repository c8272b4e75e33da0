import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lensbench.errors import LensbenchError
from lensbench.report.figures.layers import plot_layers
from lensbench.report.figures.relations import plot_relations
from lensbench.report.panels import of_methods
from lensbench.report.style import METHOD_COLOURS, colours
from lensbench.report.tables import number, print_table, result_table
from lensbench.report.writing import plot_run
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import best_layers, summarise

QUESTIONS = {"shuffled": "uses_activation", "input_only": "beats_text", "embedding": "beats_text"}
LAYERS = 5


@pytest.fixture(scope="module")
def summary():
    rng = np.random.default_rng(0)
    frames = []
    for relation in ("capital", "currency"):
        for site in ("subject", "answer"):
            for inspector, top in (("patchscope", 0.9), ("my_lens", 0.6)):
                for baseline, chance in (("none", None), ("shuffled", 0.125), ("input_only", 0.5), ("embedding", 0.3)):
                    heights = np.linspace(0.125, top, LAYERS) if chance is None else np.full(LAYERS, chance)
                    layers = [None] if baseline == "input_only" else list(range(LAYERS))
                    for layer, height in zip(layers, heights, strict=False):
                        right = (rng.random(20) < height).astype(float)
                        frames.append(
                            pd.DataFrame(
                                {"relation": relation, "site": site, "inspector": inspector, "baseline": baseline,
                                 "layer": layer, "item": [f"{relation}{site}{i}" for i in range(20)],
                                 "subject": [f"s{i}" for i in range(20)], "fold": np.arange(20) % 5,
                                 "correct": right, "correct_corrected": right}
                            )
                        )  # fmt: skip
    records = pd.concat(frames, ignore_index=True).assign(
        model="org/tiny",
        verbalizer="org/tiny",
        task="country_facts",
        attempt="only",
        chance=0.125,
        gold="Cairo",
    )
    return summarise(records.astype({"layer": "Int16"}), SummarySettings(QUESTIONS, draws=100))


def texts(figure):
    found = [artist.get_text() for artist in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(text for text in found if text)


def test_the_title_at_the_subject_says_what_is_shown(summary):
    keys = {"task": "country_facts", "relation": "capital", "site": "subject"}
    alone = plot_layers(summary[summary["inspector"] == "patchscope"], **keys)
    title = " ".join(texts(alone).split())
    what = "what this reader can recover from each layer"
    assert f"country facts \u2192 capital, read at subject: {what}" in title
    assert "tiny, 20 subjects, 20 items. Shade: 95 %" in title
    assert "Layer (0 = embeddings)" in texts(alone)
    both = plot_layers(summary, **keys)
    assert "what each reader can recover from each layer" in " ".join(texts(both).split())


def test_every_method_has_a_curve_with_a_band_and_its_rivals_beside_it(summary):
    figure = plot_layers(summary, task="country_facts", relation="all", site="answer")
    top, *panels = figure.axes
    assert len(panels) == 2
    assert len(top.collections) == 2
    colour = METHOD_COLOURS["patchscope"]
    expected = summary.query(
        "inspector == 'patchscope' and baseline == 'none' and relation == 'all' and site == 'answer'"
    )
    curve = next(line for line in top.lines if line.get_color() == colour)
    np.testing.assert_allclose(curve.get_ydata(), expected.drop_duplicates("layer")["accuracy_corrected"])
    assert "input only" in texts(figure)
    assert "at chance: shuffled" in texts(figure)
    dashed = [line for panel in panels for line in panel.lines if line.is_dashed()]
    assert dashed


def test_a_gap_plot_marks_the_layers_where_the_gap_holds(summary):
    figure = plot_layers(summary, task="country_facts", relation="all", site="answer", metric="gap:uses_activation")
    (axis,) = figure.axes
    filled = [
        line for line in axis.lines if line.get_marker() not in ("", "None") and line.get_markerfacecolor() != "white"
    ]
    points = sum(len(line.get_xdata()) for line in filled)
    chosen = summary.query("relation == 'all' and site == 'answer' and question == 'uses_activation'")
    assert points == (chosen["verdict"] == "uses the activation").sum() > 0


@pytest.mark.parametrize("metric", ["accuracy", "gap:beats_text"])
def test_small_multiples_have_a_panel_for_each_relation_and_site(summary, metric):
    figure = plot_relations(summary, task="country_facts", metric=metric)
    assert len(figure.axes) == 6
    assert "all relations" in texts(figure)


def test_a_folder_gets_png_and_svg_with_the_same_bytes_each_time(summary, tmp_path):
    first, second = (plot_run(summary, tmp_path / name) for name in ("a", "b"))
    assert {path.suffix for path in first} == {".png", ".svg"}
    assert len(first) == 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    svg = next(path for path in first if path.suffix == ".svg").read_text()
    assert re.search(r"<text[^>]*>.*Layer", svg)
    assert "<dc:date>" not in svg


def test_a_single_relation_is_drawn_once(summary, tmp_path):
    small = summary[summary["relation"] == "all"]
    written = {path.name for path in plot_run(small, tmp_path)}
    assert len(written) == 4
    assert not any("relations" in name for name in written)


def test_a_file_is_written_in_the_format_of_its_suffix(summary, tmp_path):
    small = summary[summary["relation"] == "all"]
    assert plot_run(small, tmp_path / "figure.pdf") == [tmp_path / "figure.pdf"]
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(LensbenchError, match=r"\.png, \.svg, \.pdf"):
        plot_run(small, tmp_path / "figure.gif")


def test_errors_say_what_can_be_plotted(summary, tmp_path):
    with pytest.raises(LensbenchError, match="did you mean 'accuracy'"):
        plot_run(summary, tmp_path, metric="acuracy")
    with pytest.raises(LensbenchError, match="nothing to plot"):
        plot_run(summary, tmp_path, metric="gap:target_specific")
    with pytest.raises(LensbenchError, match="unknown relation 'flag'; known: all, capital, currency"):
        plot_layers(summary, task="country_facts", relation="flag", site="answer")


def test_a_method_keeps_its_colour():
    assert colours(["patchscope", "zoo"])["patchscope"] == colours(["patchscope", "probe"])["patchscope"]
    palette = colours([*METHOD_COLOURS, "a", "b"])
    assert len(set(palette.values())) == 6


def test_the_table_is_whole_on_80_columns(summary):
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=None)
    print_table(result_table(best_layers(summary), narrow=True), console)
    lines = output.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "\u2026" not in output.getvalue()
    words = set(re.findall(r"\w+", output.getvalue()))
    assert words & {"inconclusive", "activation"}
    assert not words & {"inconclusiv", "inconclusi", "inconclus"}


def test_the_piped_table_is_whole(summary):
    output = io.StringIO()
    print_table(result_table(best_layers(summary)), Console(file=output))
    text = output.getvalue()
    assert "\u2026" not in text
    assert text.count("patchscope") == 6  # two relations and the totals, two sites
    assert "country_facts / currency" in text
    assert "input only" in text
    assert "not where the" in text
    assert re.search(r"\+\.\d\d \[[+-]\.\d\d, \+\.\d\d\]", text)


@pytest.mark.parametrize(("value", "text"), [(0.754, ".75"), (1.0, "1.00"), (-0.003, ".00"), (float("nan"), "-")])
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_differences_have_a_sign():
    assert [number(value, signed=True) for value in (0.1, -0.25, 0.001)] == ["+.10", "-.25", ".00"]


def test_a_method_that_reads_no_layer_is_a_level_line(summary):
    level = summary[summary["baseline"] == "none"].drop_duplicates(["inspector", "relation", "site", "question"])
    level = level.assign(inspector="reader", layer=pd.NA).astype({"layer": "Int16"})
    drawn = of_methods(pd.concat([summary, level]).query("relation == 'all'"), "accuracy_corrected")
    reader = drawn[drawn["inspector"] == "reader"]
    assert sorted(reader["layer"].unique()) == sorted(summary["layer"].dropna().unique())
