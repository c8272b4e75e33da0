"""Read sites of several tokens, from the command line's words to the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lensbench
from lensbench import testing
from lensbench.baselines.activation import mean_activation
from lensbench.baselines.diagnostics import splice, wrong_position
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import make_config
from lensbench.evaluation.items import make_benches
from lensbench.evaluation.plan import sites_of
from lensbench.exam.captured import plan_capture
from lensbench.exam.examiner import ExamSettings
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.models.activations import Residuals, capture, find_site
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.tokens import Tokens
from lensbench.runs.pages import read_page_run
from lensbench.tasks import load_task
from lensbench.tasks.extents import Extent, split_site
from tests import chats, tiny

FIGURES = True

TASK = "attribute_extraction/country_continent"


@pytest.mark.parametrize(
    ("site", "place", "extent"),
    [
        ("subject", "subject", Extent()),
        ("answer/text", "answer", Extent("text")),
        ("subject/segment:10", "subject", Extent("segment", 10)),
        ("segment:2", "", Extent("segment", 2)),
        ("t1/span", "t1", Extent("span")),
    ],
)
def test_a_site_is_a_place_and_an_extent(site: str, place: str, extent: Extent) -> None:
    assert split_site(site) == (place, extent)


WRONG = ["subject/segment", "subject/segment:0", "answer/words", "text:3", "subject/segment:x"]


@pytest.mark.parametrize("site", WRONG)
def test_a_wrong_extent_is_one_line(site: str) -> None:
    with pytest.raises(UsageError, match="expected segment:N") as told:
        make_config({"sites": (site,)})
    assert "\n" not in str(told.value)


def test_an_extent_alone_stands_for_every_place() -> None:
    task = load_task(TASK)
    assert sites_of(task, make_config({"sites": "segment:3"})) == ("subject/segment:3", "answer/segment:3")
    assert sites_of(task, make_config({"sites": "answer,subject/span"})) == ("subject/span", "answer")


@pytest.mark.parametrize("extent", ["segment:4", "span", "text"])
def test_all_vectors_are_those_of_a_plain_pass(extent: str) -> None:
    """Every token of a site by hidden states, one text at a time; the last is what a site of one token gives."""
    model = tiny.model("llama", bos=True)
    items = load_task(TASK).items("subject", "test")[:12]
    several = [replace(item, site=f"subject/{extent}") for item in items]
    found = capture(model, [find_site(model, item) for item in several], (0, 2, 4))
    one = capture(model, [find_site(model, item) for item in items], (0, 2, 4))
    torch.testing.assert_close(found.values, one.values, rtol=1e-4, atol=1e-4)
    seen = 0
    for count, (places, values) in found.by_count().items():
        for column, place in enumerate(places):
            item = items[place]
            ids = model.tokens.tokenizer(item.source[: item.subject_span[1]])["input_ids"]
            before = len(model.tokens.tokenizer(item.source[: item.subject_span[0]].rstrip())["input_ids"])
            assert count == {"segment:4": 4, "span": len(ids) - before, "text": len(ids) - 1}[extent]
            with torch.no_grad():
                states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for row, layer in enumerate((0, 2)):
                torch.testing.assert_close(values[row, column], states[layer][0, -count:], rtol=1e-4, atol=1e-4)
            seen += 1
    assert seen == len(items)


def test_changes_act_on_every_vector_and_a_single_one_is_not_its_own_mean() -> None:
    values = torch.arange(12.0).reshape(1, 3, 4)
    before = torch.arange(24.0).reshape(1, 3, 2, 4)
    before[0, 0] = before[0, 1, 0] = 0
    read = Residuals((0,), values, before, (1, 2, 3))
    meant = read.change(lambda rows: rows.mean(1, keepdim=True).expand_as(rows))
    assert meant.before is not None
    expected = torch.cat([before[0, 1, 1:], before[0, 2]]).mean(0)
    assert torch.equal(meant.before[0, 2], expected.expand(2, -1))
    assert not meant.before[0, 0].any()
    assert not meant.before[0, 1, 0].any()
    alone = Residuals((0,), values[:, :2], before[:, :2], (1, 2)).change(lambda rows: rows)
    assert alone.before is not None
    assert not alone.before.any()
    assert read.at_items([2]).counts == (3,)
    assert read.same_at(0, read)
    assert not read.same_at(0, Residuals((0,), values, before + 1, (1, 2, 3)))


def test_a_run_at_such_a_site_is_told_and_drawn(tmp_path: Path) -> None:
    settings = {"sites": "subject/segment:3", "layers": "0,2", "baselines": "shuffled,mean", "limit": 10}
    letters = "attribute_extraction/word_first_letter"
    run = lensbench.evaluate(
        tiny.model("llama"), tasks=letters, inspectors="logit_lens", out=tmp_path / "run", **settings
    )
    assert set(run.records["site"]) == {"subject/segment:3"}
    assert run.info["knowledge"].keys() == {letters}, "cells name their relations at such a site, too"
    plots = {path.name for path in (tmp_path / "run" / "plots").rglob("*.png")}
    assert {path.parent.name for path in (tmp_path / "run" / "plots").rglob("*.png")} == {"plots"}
    assert any("subject_segment_3" in name for name in plots)
    page = read_page_run(tmp_path / "run")
    assert not page.problems
    assert len(page.texts) > 0


def test_a_baseline_that_changes_one_vector_of_several_is_told() -> None:
    model = tiny.model("llama")
    bench = testing.make_bench(
        model, Corpus(model), testing.Subjects(("Bo Ash", "Cy Cole", "Di Dow"), ("tea", "wine")), (0, 2),
        site="subject/segment:2",
    )  # fmt: skip
    method = CrossFit(LogitLens, bench)
    with pytest.raises(LensbenchError, match=r"have it return captured\.change"):
        method.with_activations(lambda read: Residuals(read.layers, read.values)).scores()
    for baseline in (wrong_position, splice, mean_activation):
        assert len(baseline(method)) == 1


@pytest.mark.parametrize("refuse", [ExamSettings, lambda config: plan_capture(config, Path("nothing.parquet"))])
def test_an_exam_has_one_vector_a_row(refuse: object) -> None:
    config = make_config({"model": "smollm2-135m", "tasks": TASK, "sites": "subject/text"})
    with pytest.raises(UsageError, match="a row of an exam is one vector"):
        refuse(config)  # type: ignore[operator]
    with pytest.raises(UsageError, match="isolate shows one vector at a time"):
        make_config({"sites": "text", "isolate": True})


TOWNS = [
    "Arlen",
    "Bexby",
    "Corrin",
    "Dunmore",
    "Elford",
    "Fenwick",
    "Garth",
    "Holme",
    "Irby",
    "Jarrow",
    "Kelso",
    "Louth",
]


def bank_of_chats(folder: Path) -> Path:
    """A bank of workspace-bench whose items are put in a chat; the second half has a sentence that is written."""
    items = []
    for i in range(36):
        town, land = f"{TOWNS[i % 12]} {i // 12}", ["Norland", "Ostland", "Sudland"][i % 3]
        common = {"prompt": f"Where does {town} lie?", "intermediates": [land]}
        end, written = {"kind": "final_prompt_token", "offsets": [-1]}, {"kind": "writing_positions"}
        items += [
            {**common, "eval_render": "chat", "readout": end},
            {**common, "eval_render": "chat_dm", "readout": written, "polarity": "think", "assistant": "It rains."},
        ]
    path = folder / "bank.json"
    path.write_text(json.dumps({"family": "lands", "items": items}))
    return path


def benches_of(model: LanguageModel, folder: Path) -> list[Bench]:
    context = RunContext(model, model, Corpus(model), (0, 2, 4), 0)
    return make_benches(context, load_task(f"workspace:{bank_of_chats(folder)}"), "answer", {})


@pytest.mark.parametrize("family", [*chats.TEMPLATES])
def test_conversations_are_read_where_the_template_of_the_target_ends(
    tmp_path: Path, family: str, isolated_cache: Path
) -> None:
    """Beside the reference: the template applied by transformers, and a plain pass over its ids."""
    model = chats.model(family)
    tokenizer = model.tokens.tokenizer
    benches = benches_of(model, tmp_path)
    assert [bench.relation.name for bench in benches] == ["lands_chat", "lands_think"]
    for bench in benches:
        for i, item in enumerate(bench.items):
            turns = [{"role": "user", "content": item.subject}]
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )  # fmt: skip
            text += "It rains." if item.relation == "lands_think" else ""
            adds = family in chats.ADDS_BOS and not text.startswith(tokenizer.bos_token)
            ids = tokenizer(text, add_special_tokens=adds)["input_ids"]
            assert list(find_site(model, item).ids) == ids, item.id
            assert item.mention == item.subject
            with torch.no_grad():
                hidden = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, -1]
            torch.testing.assert_close(bench.residuals.values[1, i], hidden, atol=1e-5, rtol=1e-4)


def test_conversations_need_a_chat_template_and_cannot_be_nested(tmp_path: Path, isolated_cache: Path) -> None:
    with pytest.raises(LensbenchError, match=r"is put in a chat: the tokenizer has no chat template"):
        benches_of(tiny.model("llama"), tmp_path)
    plain = chats.model("chatml")
    nested = LanguageModel(plain.module, Tokens(plain.tokens.tokenizer, chat_template=True), "nested")
    with pytest.raises(LensbenchError, match="its text is a conversation already; run without --chat-template"):
        benches_of(nested, tmp_path)


def test_conversations_are_not_captured_elsewhere(tmp_path: Path) -> None:
    config = make_config({"tasks": f"workspace:{bank_of_chats(tmp_path)}", "sites": "answer"})
    with pytest.raises(UsageError, match="puts texts in a chat, whose template only the loaded model has"):
        plan_capture(config, tmp_path / "plan.parquet")


def test_a_run_about_conversations(tmp_path: Path, isolated_cache: Path) -> None:
    run = lensbench.evaluate(
        chats.model("chatml"), tasks=f"workspace:{bank_of_chats(tmp_path)}", inspectors="logit_lens,patchscope",
        sites="answer/segment:3", layers="0,last", out=tmp_path / "run",
    )  # fmt: skip
    assert not run.failed
    own = run.records[run.records["baseline"] == "none"]
    assert set(own["relation"]) == {"lands_chat", "lands_think"}
    assert len(own) == 2 * 2 * 36 * 2
    page = read_page_run(run.path)
    assert not page.problems
    told = {text.source: text for text in page.texts.values()}
    asked = told["user: Where does Arlen 0 lie?\nassistant: It rains."]
    assert asked.start == asked.end, "the token read is the template's: nothing is marked"
    assert "as the model's chat template writes it" in asked.note
