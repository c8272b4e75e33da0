"""Many runs as one table."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.leaderboard import Entry, leaderboard_page
from lensbench.results.summary import best_layers, summary_and_power
from lensbench.runs.pages import read_board, write_leaderboard
from lensbench.runs.run import Run, finish
from tests.command import lensbench, refused
from tests.made_run import Made, write_run

MADE = Made(subjects=40, hostile=True, layers=(0, 1, 2))


def entry(folder: Path, made: Made = MADE, **more: object) -> Entry:
    run = Run(write_run(folder, made))
    return Entry(folder.name, best_layers(summary_and_power(run.records, run.settings)[0]), **more)


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2], re.DOTALL)
    return [[re.sub("<[^>]+>", "|", cell) for cell in re.findall("<td.*?</td>", row, re.DOTALL)] for row in rows]


def test_one_row_a_method_with_its_verdicts(tmp_path: Path) -> None:
    known = {"patchscope": "found 3 of 3 planted facts, 0 false claims in 5 trials (tiny)"}
    page = leaderboard_page([entry(tmp_path / "a", calibrations=known)])
    first, second = cells(page)
    assert "patchscope" in first[0]
    assert "logit lens" in second[0]
    assert "2 relations" in first[3]
    assert "uses the activation" in first[7]
    assert "over shuffled" in first[7]
    assert any(words in first[8] for words in ("beaten by input only", "within .10 of input only", "inconclusive"))
    assert "found 3 of 3 planted facts" in first[9]
    assert "not calibrated" in second[9]
    assert "Target&#39;s own?" not in page, "nobody was asked"


def test_data_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    made = replace(MADE, task='"><img src=x onerror=alert(2)>', accuracy={"{{ 7 * 7 }}": 0.9, "<b>x</b>": 0.3})
    one = entry(tmp_path / "a", made, calibrations={"<b>x</b>": name})
    page = leaderboard_page([replace(one, run=name)], [f"{name}: is damaged"])
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>x" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"(src|href)=|https?://", page.replace(r"&#34;&gt;&lt;img src=x", ""))


def test_edge_cases(tmp_path: Path) -> None:
    assert "No run has a result" in leaderboard_page([])
    single = entry(tmp_path / "one", replace(MADE, relations=("capital",), layers=(7,), subjects=1))
    (row, _) = cells(leaderboard_page([single]))
    assert "capital" in row[3]
    assert "1 subject|" in row[3]
    assert "|7|" in row[5]
    no_rival = entry(tmp_path / "alone", replace(MADE, rivals={}))
    assert all("not asked" not in cell for line in cells(leaderboard_page([no_rival])) for cell in line)
    empty = Entry("empty", single.best.iloc[:0])
    assert "1 run, 0 results" in leaderboard_page([empty])
    assert isinstance(no_rival.best, pd.DataFrame)


def test_runs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    finish(write_run(tmp_path / "runs" / "whole", MADE))
    write_run(tmp_path / "runs" / "unfinished", MADE)
    (tmp_path / "runs" / "deep" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "deep" / "broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "empty" / "run.json").write_text("{}")
    board = read_board(tmp_path / "runs")
    assert [one.run for one in board.entries] == ["whole"]
    assert [problem.partition(":")[0] for problem in board.problems] == ["deep/broken", "empty", "unfinished"]
    done = lensbench("report", "--leaderboard", "runs", "--out", "board.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "board.html (1 of 4 runs); it says why 3 cannot be read"
    assert str(tmp_path) not in (tmp_path / "board.html").read_text(encoding="utf-8")


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run folder"):
        read_board(tmp_path)
    assert "no such folder" in refused(lensbench("report", "--leaderboard", "nowhere", cwd=tmp_path), 2)
    assert "or --leaderboard DIR" in refused(lensbench("report", cwd=tmp_path), 2)
    write_run(tmp_path / "run", MADE)
    with pytest.raises(LensbenchError, match=r"none of the 1 run folders in .* can be read: run: .* has no summary"):
        read_board(tmp_path)
    finish(tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be written to"):
        write_leaderboard(tmp_path, tmp_path / "run")


def test_a_browser_sorts_and_filters(tmp_path: Path) -> None:
    browser = Path("/usr/bin/chromium")
    if not browser.exists():
        pytest.skip("no chromium at /usr/bin/chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    entries = [entry(tmp_path / "a"), entry(tmp_path / "b", replace(MADE, accuracy={"probe": 0.6, "my_lens": 0.2}))]
    path = tmp_path / "board.html"
    path.write_text(leaderboard_page(entries, ["c: is damaged"]), encoding="utf-8")
    with sync.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(browser))
        page = opened.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if "file:" not in request.url else None)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.click("th[data-name=accuracy] button")
        shown = page.eval_on_selector_all("td.accuracy", "cells => cells.map(cell => +cell.dataset.order)")
        assert shown == sorted(shown, reverse=True)
        page.keyboard.press("Enter")
        shown = page.eval_on_selector_all("td.accuracy", "cells => cells.map(cell => +cell.dataset.order)")
        assert shown == sorted(shown)
        page.fill("#words", "probe")
        assert page.eval_on_selector_all("tbody tr:not([hidden]) td.method", "x => x.map(y => y.innerText)") == [
            "probe"
        ]
        opened.close()
    assert not problems
