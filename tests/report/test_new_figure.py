"""A new figure is one file: a module in `lensbench/report/figures`, found by `plot`, by runs and by pages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lensbench
from lensbench.errors import LensbenchError, UsageError
from lensbench.report import figure, figures
from lensbench.report.figure import draw_figure, figure_names, figure_summaries, find_figures
from lensbench.runs.run import finish, load_run
from tests.made_run import Made, write_run

SCATTER = '''"""Scatter of accuracy against layer."""

from lensbench.report.style import new_figure
from lensbench.report.figure import Chart, Figure


def draw(run, *, title=True, **choice):
    drawing = new_figure((3.0, 2.0))
    drawing.subplots().plot(run.summary["layer"].astype(float), run.summary["accuracy"], "o")
    return drawing


def chart(run, task, relation, site):
    rows = run.summary[(run.summary["relation"] == relation) & (run.summary["site"] == site)].dropna(subset=["layer"])
    traces = [{"type": "scatter", "x": rows["layer"].tolist(), "y": rows["accuracy"].tolist(), "name": "<b>all</b>"}]
    return Chart(f"{len(rows)} points of {task}.", traces, ["n"], [("points", [str(len(rows))])])


FIGURE = Figure(title="Scatter plot", about="Every point of the summary.", draw=draw, chart=chart)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("figure") / "run", Made(accuracy={"probe": 0.7}))
    finish(path)
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more."""
    folder = tmp_path_factory.mktemp("package")
    copy = shutil.copytree(
        Path(lensbench.__file__).parent, folder / "lensbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    (copy / "report" / "figures" / "scatter.py").write_text(SCATTER, encoding="utf-8")
    return folder


def command(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from lensbench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip


def test_a_new_file_is_drawn_by_plot_and_named_in_its_help(package: Path, run: Path, tmp_path: Path) -> None:
    done = command(package, "plot", str(run), "--figure", "scatter", "--out", str(tmp_path / "new.svg"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.svg").read_text(encoding="utf-8").count("<use") > 5
    assert "scatter:" in command(package, "plot", "--help").stdout
    assert "unknown figure 'scater'; did you mean 'scatter'?" in " ".join(
        command(package, "plot", str(run), "--figure", "scater").stderr.split()
    )


def test_a_new_file_has_a_section_and_a_chart_on_the_page(package: Path, run: Path, tmp_path: Path) -> None:
    done = command(package, "report", str(run), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<a href="#scatter">Scatter plot</a>' in page
    assert '<figure id="figure-scatter"></figure>' in page
    assert page.index('id="shares"') < page.index('id="scatter"') < page.index('id="measures"')
    from tests.report.test_page import index_of

    charts = index_of(page)["runs"][0]["charts"]["scatter"]
    assert any(chart["caption"].endswith("points of facts.") for chart in charts.values())


def test_figures_are_found_by_their_files(run: Path) -> None:
    assert set(figure_summaries()) == {"compare", "gap", "grid", "headline", "layers", "relations", "used"}
    assert [name for name, one in find_figures().items() if one.anchor] == [
        "layers", "gap", "page_heat", "grid", "page_shares"
    ]  # fmt: skip
    assert set(figure_names()) == set(find_figures())
    loaded = load_run(run)
    assert len(loaded.plot("layers").axes) == len(loaded.plot_layers().axes)
    with pytest.raises(UsageError, match="unknown figure 'layer'; did you mean 'layers'"):
        draw_figure("layer", loaded)


def test_a_module_without_a_figure_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text('"""Nothing."""\n', encoding="utf-8")
    monkeypatch.setattr(figures, "__path__", [str(tmp_path)])
    monkeypatch.setattr(figure, "FOLDER", tmp_path)
    find_figures.cache_clear()
    try:
        with pytest.raises(LensbenchError, match=r"figures\.empty declares no figure"):
            find_figures()
    finally:
        find_figures.cache_clear()
