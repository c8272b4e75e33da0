"""What notebooks show: a run, its first chart, scores and activations; all that comes from data is escaped."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lensbench.inspectors.scores import Scores
from lensbench.models.activations import Residuals
from lensbench.runs.run import finish, load_run
from tests.made_run import Made, write_run

STRANGE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Made(task=STRANGE, accuracy={"patchscope": 0.9, "<img src=x>": 0.4}, sites=("subject", "answer"))
    path = write_run(tmp_path_factory.mktemp("notebook") / "run", made)
    finish(path)
    return path


def test_a_run_shows_a_sentence_and_its_best_layers_for_each_site(folder: Path) -> None:
    shown = load_run(folder)._repr_html_()
    assert shown.count("<table") == 2
    assert shown.count("Patchscope reads ") == 2
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;img src=x&gt;" in shown
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.S)
    best = load_run(folder).best.query("relation == 'all' and site == 'answer' and inspector == 'patchscope'").iloc[0]
    (row,) = [row for row in rows[: len(rows) // 2] if "<td>patchscope</td>" in row]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[1] == str(best["layer"])
    assert float(cells[2]) == pytest.approx(best["accuracy_corrected"], abs=0.006)


def test_a_run_without_a_summary_still_shows_itself(tmp_path: Path) -> None:
    shown = load_run(write_run(tmp_path / "<b>", Made()))._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "has no summary.csv: run `lensbench evaluate` again" in shown


def test_show_draws_the_first_chart_of_the_page_without_being_asked_which(folder: Path) -> None:
    run = load_run(folder)
    figure = run.show()
    assert figure._repr_png_().startswith(b"\x89PNG")
    said = " ".join(text.get_text() for text in figure.texts)
    assert "read at answer" in said
    assert len(figure.axes) == 3
    chosen = run.show(site="subject", relation="capital", width="column")
    assert "read at subject" in " ".join(text.get_text() for text in chosen.texts)
    assert chosen.get_figwidth() == pytest.approx(3.3)


def test_scores_and_activations_say_their_shapes_and_no_numbers() -> None:
    scores = Scores(("default", "<b>"), torch.full((3, 2, 4, 5), 0.1234), texts=np.full((3, 2, 4), "said"))
    assert repr(scores) == "Scores(layer 3 x attempt 2 x item 4 x answer 5; attempts default, <b>; texts)"
    assert scores._repr_html_() == f"<code>{repr(scores).replace('<b>', '&lt;b&gt;')}</code>"
    found = Residuals((0, 4, 8), torch.full((3, 4, 16), 0.1234))
    assert repr(found) == "Residuals(layer 3 x item 4 x d_model 16; layers 0, 4, 8; float32 on cpu)"
    assert found._repr_html_() == f"<code>{found!r}</code>"
