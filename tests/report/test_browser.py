"""The page in a real Chromium: what is clicked, filtered, linked to, and what never happens."""

import dataclasses
import re
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lensbench.report.page import ItemText, PageRun, render
from lensbench.runs.pages import read_page_run
from tests.made_run import HOSTILE, Made, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def with_texts(run: PageRun) -> PageRun:
    seen = run.records.drop_duplicates("item")
    texts = {
        ("facts", str(item)): ItemText(
            f"🧭 about {subject}!", 8, 8 + len(subject), "the last token", "What is {subject}?"
        )
        for item, subject in zip(seen["item"], seen["subject"].astype(str), strict=True)
    }
    return dataclasses.replace(run, texts=texts)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one with a grid, two sites, texts and hostile names, and a plain one."""
    folder = tmp_path_factory.mktemp("page")
    first = Made(
        attempts=("target_layer=0", "target_layer=2", "target_layer=same"), sites=("subject", "answer"), hostile=True,
        says=True,
    )  # fmt: skip
    runs = [with_texts(read_page_run(write_run(folder / "grid", first)))]
    runs.append(read_page_run(write_run(folder / "plain", Made(accuracy={"probe": 0.7}, layers=(3,)))))
    (folder / "page.html").write_text(render(runs), encoding="utf-8")
    return folder / "page.html"


class opened:  # noqa: N801 - reads as a verb
    """A page that was drawn; afterwards nothing may have gone wrong, and nothing have been asked of a network."""

    def __init__(self, browser, file: Path, link: str = "", **context) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.address, self.wrong, self.asked = file.as_uri() + link, [], []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def __enter__(self):
        self.page.goto(self.address)
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)
        return self.page

    def __exit__(self, kind, *_) -> None:
        self.context.close()
        if kind is None:
            assert self.wrong == []
            assert [url for url in self.asked if not url.startswith("file:")] == []


@pytest.fixture(scope="module")
def visit(browser, page_file: Path) -> Iterator:
    with (visit := opened(browser, page_file)):
        yield visit


@pytest.fixture
def page(visit) -> Iterator:
    """The page as it is when it has just been opened."""
    visit.page.evaluate("for (const name of FIELDS) state[name] = undefined; later(show)")
    visit.page.evaluate("document.querySelectorAll('figure details').forEach((one) => { one.open = false; })")
    visit.page.evaluate("window.scrollTo(0, 0)")
    yield visit.page
    assert visit.wrong == []


def until(page, expression: str) -> None:
    """Wait until something is so. (The page forbids what playwright's own waiting for expressions does.)"""
    end = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} did not become true"
        page.wait_for_timeout(50)


def settle(page) -> None:
    """Wait until what was asked for last is drawn."""
    page.evaluate("later(async () => {})")


def chosen(page) -> dict[str, str]:
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def click_cell(page, figure: str, column: int, row: int) -> None:
    """Click into a cell of a heat map."""
    # As the page was drawn, plotly knows where a cell's middle is.
    place = page.evaluate(
        """([id, column, row]) => {
        const plot = document.querySelector(`#${id} .plot`); plot.scrollIntoView({block: "center"});
        const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.d2p(xaxis._categories[column]),
                box.y + yaxis._offset + yaxis.d2p(yaxis._categories[row])];
        }""",
        [figure, column, row],
    )
    page.mouse.move(*place, steps=4)
    page.mouse.move(place[0] + 2, place[1] + 2, steps=4)
    page.wait_for_selector(f"#{figure} .hoverlayer .hovertext")
    page.mouse.click(place[0] + 2, place[1] + 2)
    settle(page)


def test_every_figure_is_drawn_with_a_description_and_a_table(page):
    page.evaluate("Object.assign(state, {site: 'subject'}); later(show)")
    settle(page)
    for figure in (
        "figure-accuracy",
        "figure-gap-uses_activation",
        "figure-gap-beats_text",
        "figure-heat",
        "figure-grid",
    ):
        assert page.locator(f"#{figure} svg.main-svg").count() >= 1, figure
        label = page.get_attribute(f"#{figure} .plot", "aria-label")
        assert label
        assert label == page.text_content(f"#{figure} figcaption")
        page.click(f"#{figure} summary")
        page.wait_for_selector(f"#{figure} table tbody tr")
    assert "was not asked here" in page.text_content("#figure-gap-target_specific")
    highest = re.search(
        r"patchscope is highest at layer (\d), (\.\d\d)", page.text_content("#figure-accuracy figcaption")
    )
    row = page.locator("#figure-accuracy tbody tr", has_text="patchscope").first
    assert row.locator("td").nth(int(highest[1])).text_content().startswith(highest[2])


def test_rivals_are_dashed_and_chosen_by_method(page):
    dashed = "[...document.querySelector('#figure-accuracy .plot').data].filter((t) => t.line.dash).map((t) => t.name)"
    assert page.evaluate(dashed) == ["input only", "shuffled"]
    page.select_option("#rivals", "strongest")
    settle(page)
    assert page.evaluate(dashed) == ["input only (of logit lens)", "input only (of patchscope)"]
    page.select_option("#rivals", "none")
    settle(page)
    assert page.evaluate(dashed) == []
    assert "The score comes from the input text." in page.text_content(".rivals-of[data-question=beats_text]")


@pytest.mark.parametrize("width", [1280, 390])
def test_at_most_three_baselines_are_drawn_and_each_line_is_named_at_its_end(browser, tmp_path, width):
    rivals = {"shuffled": 0.15, "input_only": 0.9, "embedding": 0.5, "mean": 0.3, "input_classifier": 0.2}
    made = Made(layers=tuple(range(31)), rivals=rivals)
    (tmp_path / "page.html").write_text(render([read_page_run(write_run(tmp_path / "r", made))]), encoding="utf-8")
    plot = "document.querySelector('#figure-accuracy .plot')"
    with opened(browser, tmp_path / "page.html", viewport={"width": width, "height": 800}) as page:
        names = f"{plot}.layout.annotations.map((one) => one.text.replaceAll('<br>', ' '))"
        assert set(page.evaluate(names)[:2]) == {"<b>logit lens</b>", "<b>patchscope</b>"}
        assert page.evaluate(f"{plot}.data.filter((one) => one.line.dash).length") == 3
        first = page.evaluate(names)[2:]
        assert first[0] == "input only"
        page.select_option("#rivals", "patchscope:1")
        settle(page)
        assert set(first) | set(page.evaluate(names)[2:]) == {name.replace("_", " ") for name in rivals}
        assert page.evaluate(f"{plot}._fullLayout.showlegend") is False
        boxes = [one.bounding_box() for one in page.locator("#figure-accuracy text.annotation-text").all()]
        assert all(box["x"] + box["width"] <= width for box in boxes)
        heights = sorted((box["y"], box["y"] + box["height"]) for box in boxes)
        assert all(above[1] <= below[0] + 2 for above, below in pairwise(heights))
        page.click("#figure-accuracy summary")
        page.wait_for_selector("#figure-accuracy table tbody tr")
        assert page.locator("#figure-accuracy tbody tr").count() == 7, "the table has every baseline"


def test_hovering_shows_all_methods_at_a_layer(page):
    page.locator("#figure-accuracy").scroll_into_view_if_needed()
    box = page.locator("#figure-accuracy .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2, steps=5)
    hover = page.wait_for_selector("#figure-accuracy .hoverlayer .legend").text_content()
    assert "patchscope" in hover
    assert "logit lens" in hover
    assert "[" in hover


def test_filters_change_the_list_and_its_count(page):
    assert page.locator("#list li").count() == 40
    page.select_option("#right", "right")
    settle(page)
    right = page.locator("#list li").count()
    page.select_option("#right", "wrong")
    settle(page)
    assert right + page.locator("#list li").count() == 40
    assert 0 < right < 40
    page.select_option("#right", "")
    page.select_option("#known", "known")
    settle(page)
    assert page.locator("#list li").count() == 20
    page.select_option("#known", "")
    page.fill("#search", "ZOË")
    settle(page)
    assert page.locator("#list li").count() >= 2
    assert page.text_content("#item h3") == "Zoë" or "Zoë" in page.text_content("#list")
    page.fill("#search", "nobody is called so")
    settle(page)
    assert "loosen the filters" in page.text_content("#count")
    page.fill("#search", "")
    page.select_option("#relation", "capital")
    settle(page)
    assert page.locator("#list li").count() == 20


def test_an_item_shows_its_source_every_answer_its_texts_and_rivals(page):
    page.select_option("#relation", "capital")
    settle(page)
    name = HOSTILE[3]
    page.click(f"#list button[data-item='capital/{name}/{chosen(page)['site']}/test0']")
    assert page.text_content("#item h3") == name
    assert page.text_content("#item .source mark") == name, "characters beyond 16 bits do not shift the mark"
    assert page.text_content("#item .source") == f"🧭 about {name}⟵!"
    heads = page.locator("#item h4").all_text_contents()
    assert heads[0] == "Every method's answer, layer by layer"
    assert "said, and its baselines beside it" in heads[1]
    assert "beside its baselines" in heads[2]
    answers = page.locator("#item table").first
    assert answers.locator("tbody tr").count() == 4
    assert answers.locator("thead th").all_text_contents()[1].startswith("logit lens")
    for cell in answers.locator("tbody td").all():
        assert cell.text_content()[0] in "✓✗"
        assert ("right" in cell.get_attribute("class")) == cell.text_content().startswith("✓")
    assert "said of" in page.locator("#item table").nth(1).text_content()
    assert "input only" in page.locator("#item table").nth(2).text_content()


def test_a_click_into_the_grid_shows_the_items_of_that_cell(page):
    click_cell(page, "figure-grid", 1, 2)
    found = chosen(page)
    assert (found["method"], found["layer"]) == ("patchscope", "1")
    order = page.evaluate("document.querySelector('#figure-grid .plot')._fullLayout.yaxis._categories")
    assert found["attempt"] == f"target_layer={order[2]}"
    accuracy = page.evaluate("document.querySelector('#figure-grid .plot').data[0].z[2][1]")
    right = float(re.search(r"is right on ([\d.]+) of them", page.text_content("#count"))[1])
    assert (right / 40 - 0.125) / 0.875 == pytest.approx(accuracy, abs=6e-3), "the items are those of the cell"


def test_a_click_into_the_map_and_a_button_of_its_table_do_the_same(page):
    click_cell(page, "figure-heat", 2, 0)
    clicked = chosen(page)
    assert clicked["layer"] == "2"
    page.evaluate("Object.assign(state, {layer: '0', method: 'patchscope'}); later(show)")
    settle(page)
    page.click("#figure-heat summary")
    page.wait_for_selector("#figure-heat tbody button")
    page.locator("#figure-heat tbody tr").first.locator("button").nth(2).press("Enter")
    settle(page)
    assert chosen(page) == clicked
    assert page.evaluate("document.activeElement.closest('#list') !== null"), "the keyboard is where the items are"


def test_the_keyboard_moves_through_the_items(page):
    page.locator("#list button").first.focus()
    first = page.text_content("#item h3")
    page.keyboard.press("ArrowDown")
    second = page.text_content("#item h3")
    assert first != second
    assert page.get_attribute("#list li:nth-child(2) button", "aria-current") == "true"
    page.keyboard.press("ArrowUp")
    assert page.text_content("#item h3") == first
    page.locator("a.skip").focus()
    assert page.locator("a.skip").bounding_box()["x"] >= 0, "it can be seen while it is chosen"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"


def test_a_link_brings_everything_back(browser, page_file):
    with opened(browser, page_file) as page:
        page.select_option("#site", "answer")
        page.select_option("#relation", "currency")
        settle(page)
        page.select_option("#method", "logit_lens")
        page.select_option("#known", "unknown")
        settle(page)
        page.locator("#list button").nth(4).click()
        shown, link = page.text_content("#item h3"), page.evaluate("location.hash")
        listed = page.locator("#list button").all_text_contents()
    with opened(browser, page_file, link) as page:
        assert page.text_content("#item h3") == shown
        assert page.locator("#list button").all_text_contents() == listed
        assert page.input_value("#site") == "answer"
        assert page.evaluate("location.hash") == link
        assert page.evaluate("document.getElementById('items').getBoundingClientRect().top") < 400
        page.evaluate("location.hash = '#run=1'")
        until(page, "document.getElementById('method').value === 'probe'")
    with opened(browser, page_file, "#run=77&task=nothing&layer=x&item=%3Cscript%3E&right=maybe") as page:
        assert page.locator("#list li").count() > 0, "a link to what is not there shows what is"


def test_the_run_chooser_changes_everything(page):
    assert page.is_visible("#grid")
    page.select_option("#run", "1")
    settle(page)
    assert not page.is_visible("#grid")
    assert page.locator("#results .finding:visible").count() == 1
    assert "Probe reads facts" in page.text_content("#results .of-run:not([hidden])")
    assert page.locator("#method option").all_text_contents() == ["probe"]


def test_the_finding_leads_to_its_figures(page):
    page.locator(".of-run:not([hidden]) .go a").nth(1).click()
    settle(page)
    until(page, "document.activeElement.id === 'accuracy'")
    assert chosen(page)["site"] == page.locator(".of-run:not([hidden]) .go a").nth(1).get_attribute("data-site")


def test_hostile_names_are_shown_as_they_are(page):
    page.evaluate("Object.assign(state, {relation: 'capital'}); later(show)")
    settle(page)
    names = page.locator("#list bdi").all_text_contents()
    assert names[: len(HOSTILE)] == list(HOSTILE)
    for name in HOSTILE:
        page.locator("#list button", has=page.get_by_text(name, exact=True)).first.click()
        assert page.text_content("#item h3") == name
    assert (
        page.evaluate("document.querySelectorAll('img, b > b, #list script, #item script, .plot script').length") == 0
    )
    assert page.evaluate("document.querySelectorAll('a[href^=javascript]').length") == 0


def test_a_strange_script_would_not_run(browser, page_file):
    visit = opened(browser, page_file)
    with visit as page:
        page.evaluate("const s = document.createElement('script'); s.text = 'strange = 1'; document.body.append(s)")
        assert page.evaluate("typeof strange") == "undefined"
        (refusal,) = visit.wrong
        assert "Content Security Policy" in refusal
        visit.wrong.clear()


def test_dark_pages_and_paper_have_their_own_colours(browser, page_file):
    ink = "document.querySelector('#figure-accuracy .plot')._fullLayout.font.color"
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, page_file, color_scheme="dark") as page:
        dark = page.evaluate(ink)
        assert page.evaluate(paper) == "rgb(20, 23, 27)"
        page.emulate_media(media="print", color_scheme="dark")
        until(page, f"{ink} !== '{dark}'")
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        assert not page.is_visible("nav")
        assert page.pdf()[:5] == b"%PDF-"
    with opened(browser, page_file, color_scheme="light") as page:
        assert page.evaluate(ink) != dark


def test_a_phone_scrolls_down_and_not_sideways(browser, page_file):
    with opened(browser, page_file, viewport={"width": 375, "height": 720}, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.is_visible("#item h3")


def test_a_browser_that_is_too_old_is_told(browser, page_file):
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script("delete window.DecompressionStream")
        page.goto(page_file.as_uri())
        page.wait_for_selector("#failure:not([hidden])")
        assert "Firefox 113" in page.text_content("#failure")
        assert "Patchscope reads facts" in page.text_content("#results"), "the results need no program"


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize(
    "made",
    [
        Made(subjects=1, relations=("only",), layers=(5,)),
        Made(layers=tuple(range(200)), subjects=4, relations=("r",)),
        Made(relations=tuple(f"relation_{i}" for i in range(60)), subjects=3, layers=(0, 9)),
        Made(accuracy={f"method_{i}": 0.5 for i in range(14)}, subjects=6),
        Made(rivals={}),
    ],
    ids=["one item, one layer", "200 layers", "60 relations", "14 methods", "no rivals"],
)
def test_runs_of_all_shapes_are_drawn(browser, tmp_path, made):
    (tmp_path / "page.html").write_text(render([read_page_run(write_run(tmp_path / "r", made))]), encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as page:
        assert page.locator("#figure-accuracy svg.main-svg").count() >= 1
        assert page.locator("#list li").count() == min(101, made.subjects * len(made.relations)), (
            "and a button for more"
        )
        assert page.locator("#relation option").count() == len(made.relations) + (len(made.relations) > 1)


def test_a_page_without_results_says_so(browser, tmp_path):
    folder = write_run(tmp_path / "r", Made())
    for path in (folder / "records").iterdir():
        path.write_bytes(b"broken")
    (tmp_path / "page.html").write_text(render([read_page_run(folder)]), encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as page:
        assert "There are no results" in page.text_content("#results")
        assert "What is missing: 7" in page.text_content("#results")
        assert "No method has results here" in page.text_content("#figure-accuracy")
        assert "no items here" in page.text_content("#count")
