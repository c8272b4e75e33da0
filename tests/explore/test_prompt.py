"""`lensbench inspect`: tables of a lens, descriptions of a token, their pages and figures."""

import html as escaping
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import tests.tiny as tiny
from lensbench.errors import LensbenchError, UsageError
from lensbench.explore.prompt import describe_token, inspect, word_of
from lensbench.explore.prompt_tables import LensTable, visible
from lensbench.explore.prompt_terminal import terminal_descriptions, terminal_table
from lensbench.inspectors.base import Lens
from lensbench.inspectors.lenses.affine_lens import AffineLens
from lensbench.inspectors.lenses.future_lens import FutureLens
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.models.loading import load_model
from lensbench.report.style import save_figure

PROMPT = "the the the man said the <script>alert(1)</script> $x$ $y$"


@pytest.fixture(scope="module")
def table() -> LensTable:
    return inspect(PROMPT, tiny.model())


def printed(table: LensTable, by: str = "probability", *, width: int = 80, colour: bool = True) -> str:
    output = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=output, width=width, force_terminal=colour, color_system=system)
    console.print(terminal_table(table, by, console))
    return output.getvalue()


def test_cells_are_what_the_head_says_of_each_layer(table: LensTable) -> None:
    model = tiny.model()
    ids = torch.tensor([model.tokens.encode(PROMPT).ids])
    every = model.residuals(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], range(5))[:, 0]
    expected = model.unembed(every.flatten(0, 1)).softmax(1).reshape(5, ids.shape[1], -1)
    best = expected.max(2)
    np.testing.assert_array_equal(table.top[:, :, 0], best.indices)
    np.testing.assert_allclose(table.probabilities[:, :, 0], best.values, rtol=1e-4)
    final = expected[-1].argmax(1)
    np.testing.assert_array_equal(table.final, final)
    given = expected[2, torch.arange(len(final)), final]
    np.testing.assert_allclose(table.lens_probability[2], given, rtol=1e-4)
    np.testing.assert_array_equal(table.rank[2], (expected[2] > given[:, None]).sum(1))


class Steep(LogitLens):
    """So steep that all but a few probabilities are 0 in float32."""

    name = "steep"

    def logits(self, layer: int, residuals: torch.Tensor, attempt: int = 0) -> torch.Tensor:
        return super().logits(layer, residuals, attempt) * 2000


def test_ranks_are_counted_among_logits_where_probabilities_underflow() -> None:
    model = tiny.model()
    found = inspect(PROMPT, model, Steep())
    ids = torch.tensor([model.tokens.encode(PROMPT).ids])
    every = model.residuals(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], range(5))[:, 0]
    for layer, rows in enumerate(every):
        logits = model.unembed(rows).double()
        given = logits[torch.arange(len(rows)), torch.tensor(found.final)]
        np.testing.assert_array_equal(found.rank[layer], (logits > given[:, None]).sum(1))
    assert (found.lens_probability[0] == 0).any()
    assert found.rank.max() > 100


def test_the_last_layer_of_the_logit_lens_is_the_model(table: LensTable) -> None:
    assert (table.rank[-1] == 0).all()
    np.testing.assert_allclose(table.probabilities[-1, :, 0], table.final_probability, rtol=1e-4)


def test_layers_may_leave_the_last_out() -> None:
    some = inspect(PROMPT, tiny.model(), layers="0,2")
    whole = inspect(PROMPT, tiny.model())
    assert some.layers == (0, 2)
    np.testing.assert_array_equal(some.rank, whole.rank[[0, 2]])


@pytest.mark.parametrize("lens", [TunedLens(tokens=256, steps=0), AffineLens(tokens=256)])
def test_any_lens_of_the_next_token_is_read(lens: Lens, isolated_cache: Path) -> None:
    found = inspect("the man said that he", tiny.model(), lens, layers="0,4", top=3)
    assert found.lens == lens.name
    assert found.top.shape[::2] == (2, 3)
    np.testing.assert_array_less(found.probabilities.sum(2), 1.0001)


def test_equal_tokens_stay_apart(table: LensTable) -> None:
    frame = table.to_frame()
    assert len(frame) == len(table.layers) * len(table.tokens)
    assert not frame.duplicated(["layer", "position"]).any()
    figure = table.plot()
    assert len(figure.axes[0].get_xticks()) == len(table.tokens) > len(set(table.tokens))
    columns = re.findall(r'<th scope="col"><small>(\d+)</small>', table.to_html())
    assert [int(column) for column in columns] == list(range(len(table.tokens)))
    assert len(table.to_frame(top=4)) == 4 * len(frame)


def test_the_page_needs_no_network_and_escapes_the_prompt(table: LensTable) -> None:
    page = table.to_html("rank")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(src|href)\s*=|https?://|@import", page)
    assert 'data-by="rank"' in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1))
    assert data["top"] == table.top.tolist()
    assert len(data["top"][0][0]) == 10
    assert len(re.findall("<td tabindex", page)) == table.rank.size


def test_a_notebook_shows_it_in_a_frame_of_its_own(table: LensTable) -> None:
    shown = table._repr_html_()
    assert shown.startswith("<iframe")
    assert escaping.unescape(re.search(r'srcdoc="([^"]*)"', shown).group(1)) == table.to_html()


def test_a_terminal_gets_blocks_that_fit_it(table: LensTable) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(table, width=60))
    assert max(len(line) for line in plain.splitlines()) <= 60
    assert plain.count("model ") >= 2
    assert "\x1b[" in printed(table, "rank")


def test_without_colours_there_are_figures(table: LensTable) -> None:
    text = printed(table, "rank", width=4000, colour=False)
    last = next(line for line in text.splitlines() if line.split()[:1] == ["4"])
    assert last.count("* 0") == len(table.tokens)
    assert "\u2026" not in text
    first = next(line for line in printed(table, width=4000, colour=False).splitlines() if line.split()[:1] == ["4"])
    assert f"{table.probabilities[-1, 0, 0]:.2f}" in first


@pytest.mark.parametrize("by", ["probability", "rank"])
def test_figures_are_drawn_whatever_the_tokens(by: str, tmp_path: Path) -> None:
    strange = inspect("the \u6771\u4eac \U0001f600 \u05e9\u05dc\u05d5\u05dd $x$ $y$\n\tend", tiny.model(), layers="0,4")
    (path,) = save_figure(strange.plot(by=by), [tmp_path / "table.png"])
    assert path.stat().st_size > 5000


def test_more_tokens_than_a_figure_holds_are_told() -> None:
    with pytest.raises(LensbenchError, match="room for 150 tokens"):
        inspect("the " * 170, tiny.model(), layers="0").plot()


def test_tokens_are_shown_in_one_line() -> None:
    tokens = tiny.model().tokens
    assert visible(" the") == "the"
    assert visible("  ") == "\u2423\u2423"
    assert visible("a\n\x1b[31m") == "a\u21b5\u241b[31m"
    assert visible("\u202e") == "U+202E"
    parts = [word_of(tokens, token) for token in tokens.encode("\u6771").ids]
    assert " ".join(parts).replace("> <", " ") == "<E6 9D B1>"
    assert word_of(tokens, 10**6) == "<1000000>"
    assert word_of(tokens, 1) == "<eos>"


def test_a_token_is_described_layer_by_layer() -> None:
    model = tiny.model()
    found = describe_token("the man said that he", "man", model, "0,2", Patchscope((1, "same"), "description"))
    assert found.texts.shape == (2, 2)
    assert found.target_layers == ("1", "same")
    assert "man" in "".join(word_of(model.tokens, token) for token in model.tokens.encode("the man said that he").ids)
    assert list(found.to_frame().columns) == ["layer", "target_layer", "text"]
    assert found.plot().axes[0].texts
    assert "written at layer same" in found.to_html()
    Console(file=io.StringIO()).print(terminal_descriptions(found))


def test_a_number_and_a_word_name_the_same_token() -> None:
    prompt, model = "the man said that he", tiny.model()
    last = describe_token(prompt, -1, model, "2")
    assert last.position == len(model.tokens.encode(prompt).ids) - 1
    assert describe_token(prompt, "he", model, "2").to_frame().equals(last.to_frame())
    for token, message in (
        (0, "attention sink"),
        (99, "the prompt has tokens 0 to"),
        ("cat", "or a word of the prompt"),
    ):
        with pytest.raises(LensbenchError, match=message):
            describe_token(prompt, token, model, "2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "is empty"),
        ({"lens": "logit_len"}, "did you mean 'logit_lens'"),
        ({"lens": "patchscope"}, "give --patchscope --token TOKEN"),
        ({"lens": "probe"}, "gives no distribution of the next token"),
        ({"lens": FutureLens()}, "does not predict the next token"),
        ({"layers": "some"}, "expected all, stride:2"),
        ({"top": 0}, "expected 1 or more"),
    ],
)
def test_wrong_input_is_answered_before_a_model_is_loaded(given: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        inspect(**({"prompt": PROMPT, "model": "no-such-model"} | given))


def test_a_prompt_that_is_too_long_is_told() -> None:
    with pytest.raises(LensbenchError, match="tiny-llama reads at most 256"):
        inspect("the " * 300, tiny.model())


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lensbench", "inspect", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_writes_a_page_and_a_figure(tiny_llama_folder: Path, tmp_path: Path) -> None:
    files = ("--html", "a.html", "--png", "a.png", "--json", "--top", 2)
    done = command("The capital of France", "--model", tiny_llama_folder, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["place"] for row in rows[:4]] == [1, 2, 1, 2]
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hello there", "--token", "1"), "give --patchscope and --token together"),
        (("hello there", "--patchscope", "--token", "cat"), "expected the number of a token"),
        (("hello there", "--png", "a.gif"), "the suffix must be one of"),
        (("hello there", "--html", "nowhere/a.html"), "expected a file in an existing folder"),
        (("hello there", "--lens", "tuned_len"), "did you mean 'tuned_lens'"),
        (("hello there", "--set", "steps=1", "--lens", "logit_lens"), "has no parameter 'steps'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_refuses_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("importing ")]
    assert len(lines) == 1


@pytest.mark.model
def test_smollm2_says_paris(smollm2_folder: Path) -> None:
    """The name appears in the last layers only."""
    model = load_model(str(smollm2_folder))
    found = inspect("The capital of France is", model)
    last = found.to_frame().query("position == 4").set_index("layer")
    assert last.loc[30, "predicted"] == " Paris"
    assert last.loc[30, "probability"] > 0.5
    assert last.loc[12, "final_rank"] > 50
