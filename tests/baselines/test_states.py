"""The baselines of relations whose sources state the answer: the matched twin, and the visible text alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lensbench import evaluate, testing
from lensbench.baselines.readers import TextReader
from lensbench.baselines.spec import choose_baselines, find_function
from lensbench.baselines.states import twin_of, without_statement
from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.evaluation.plan import required_baselines
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.probes.probe import Probe
from lensbench.inspectors.scores import Scores
from lensbench.models.corpus import Corpus
from lensbench.tasks.facts import Relation
from lensbench.tasks.items import Item, filled
from tests import tiny

FIGURES = True

LAYERS = (0, 2, 4)
TEXT = "Keep {answer} in mind: {subject}"
CHOICES = ("beer", "tea", "wine")
FIRSTS, LASTS = ("Bo", "Cy", "Di", "Ed", "Fay"), ("Al", "Jo", "Lu", "Mo", "Si", "Vi")
NAMES = tuple(f"{first} met {last}" for first in FIRSTS for last in LASTS)


def given(relation: Relation) -> Relation:
    return replace(relation, given=True, sources={"subject": {"train0": f"Now {TEXT}", "test0": TEXT}})


def told(item: Item, relation: Relation, answer: str) -> Item:
    source, span = filled(relation.sources["subject"][item.template], item.subject, answer)
    return replace(item, source=source, subject_span=span)


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Thirty visible texts, each after one of three words, on a tiny model."""
    model = tiny.model("llama")
    made = testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, CHOICES), LAYERS)
    relation = given(made.relation)
    items, train = (
        tuple(told(replace(item, template=name), relation, item.answer) for item in part)
        for part, name in ((made.items, "test0"), (made.train_items, "train0"))
    )
    return replace(made, relation=relation, items=items, train_items=train)


class Everything(Inspector):
    """Keeps what it is shown, of all sources."""

    name = "everything"
    reads = frozenset({"activation", "text", "components", "target"})

    def inspect(self, evidence: Evidence) -> Scores:
        type(self).seen = evidence
        return Scores(("default",), torch.zeros(len(evidence.layers), 1, evidence.n_items, len(evidence.answers)))


def test_the_twin_is_the_same_text_after_another_answer(bench: Bench) -> None:
    for item in bench.items:
        twin = twin_of(item, bench.relation, 0)
        (other,) = [choice for choice in CHOICES if choice in twin.source]
        assert other != item.answer
        assert twin.source == item.source.replace(item.answer, other)
        assert twin.mention == item.mention
        assert replace(twin, source=item.source, subject_span=item.subject_span) == item
        assert twin == twin_of(item, bench.relation, 0)
    drawn = [[twin_of(item, bench.relation, seed).source for item in bench.items] for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_all_that_a_method_is_shown_is_the_twins(bench: Bench) -> None:
    """Activations, parts of blocks, runs of the target and texts, against transformers on the twin's text alone."""
    (outcome,) = find_function("matched_twin")(CrossFit(Everything, bench))
    assert outcome.items == bench.items, "scored against the item's own answer"
    seen, model = Everything.seen, bench.context.model
    for i, item in enumerate(bench.items):
        twin = twin_of(item, bench.relation, bench.context.seed)
        ids = torch.tensor([model.tokens.encode(twin.source).ids])
        hidden = model.module(ids, output_hidden_states=True).hidden_states
        for j, layer in enumerate(LAYERS[:-1]):  # transformers gives the last one after the norm
            torch.testing.assert_close(seen.residuals.values[j, i], hidden[layer][0, -1], rtol=1e-4, atol=1e-4)
        assert seen.texts[i].source == twin.source
    torch.testing.assert_close(seen.runs.own().read("site", LAYERS).values, seen.residuals.values)
    own = bench.component("mlp").at_layers(LAYERS).values
    assert not torch.isclose(seen.components.read("mlp").values[1:], own[1:]).all(-1).any()
    assert torch.equal(seen.residuals.values[0], bench.residuals.at_layers((0,)).values[0]), (
        "the token read is the same"
    )


def test_several_vectors_are_the_twins(bench: Bench) -> None:
    several = replace(bench, items=tuple(replace(item, site="subject/segment:3") for item in bench.items))
    find_function("matched_twin")(CrossFit(Everything, several))
    shown, own = Everything.seen.residuals, several.residuals.at_layers(LAYERS)
    assert shown.counts == own.counts == (3,) * 30
    assert not torch.isclose(shown.before[1:], own.before[1:]).all(-1).any()


def test_a_probe_keeps_its_fits_and_reads_the_twin(bench: Bench) -> None:
    method = CrossFit(Probe, bench)
    method.scores()
    kept = dict(method.fitted)
    (outcome,) = find_function("matched_twin")(method)
    assert method.fitted == kept
    assert not outcome.zero_shot
    assert not torch.equal(outcome.scores.log_scores, method.scores().log_scores)


@pytest.mark.parametrize("make", [LogitLens, Patchscope], ids=lambda make: make.name)
def test_the_visible_text_is_the_subject_alone(make: type[Inspector], bench: Bench) -> None:
    (outcome,) = find_function("visible_text")(CrossFit(make, bench))
    (whole,) = find_function("input_only")(CrossFit(make, bench))
    forms = outcome.scores.attempts
    assert set(bench.forms) <= set(forms)
    assert set(whole.scores.attempts) - set(forms) == {"{source}\n" + bench.question}
    untold = replace(bench, items=tuple(replace(item, source="") for item in bench.items))
    expected = CrossFit(lambda: TextReader(forms), untold).scores()
    assert torch.equal(outcome.scores.log_scores, expected.log_scores)


@pytest.mark.parametrize("rival", ["matched_twin", "visible_text", "without_evidence"])
def test_where_the_answer_is_not_given_they_do_not_apply(rival: str) -> None:
    with pytest.raises(NotApplicableError, match="do not state the answer"):
        find_function(rival)(CrossFit(LogitLens, testing.small_bench()))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Think of {answer} while you copy. Sentence: {subject}. Copy: {subject}", "Sentence: {0}. Copy: {0}"),
        ("A: I live in {answer}.\nB: Good to know!\nA: {subject}", "B: Good to know!\nA: {0}"),
        ("Bo and Al waited. The key had {answer}. And now: {subject}", "Bo and Al waited. And now: {0}"),
    ],
)
def test_the_evidence_is_the_sentence_that_states_the_answer(bench: Bench, text: str, left: str) -> None:
    relation = replace(bench.relation, sources={"subject": {"test0": text}})
    item = without_statement(bench.items[0], relation)
    assert item.source == left.format(item.subject)
    assert item.source[slice(*item.subject_span)] == item.subject
    assert item.subject_span[1] == len(item.source)


def test_where_nothing_but_the_subject_would_be_left_nothing_is_cut_away(bench: Bench) -> None:
    for text in ("Keep {answer} in mind: {subject}", "Keep {answer} and {subject}"):
        relation = replace(bench.relation, sources={"subject": {"test0": text}})
        with pytest.raises(NotApplicableError, match="no text before the subject"):
            without_statement(bench.items[0], relation)


def test_a_method_on_restyled_texts_keeps_its_fits_and_reads_the_subject_in_them() -> None:
    model = tiny.model("llama")
    bench = testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, CHOICES), LAYERS)
    texts = ("ok so guess what: {subject}", "Minutes. 1. Letters. 2. {subject}")
    method = CrossFit(Probe, bench)
    method.scores()
    kept = dict(method.fitted)
    (outcome,) = find_function("restyled")(method, texts)
    assert method.fitted == kept
    assert outcome.items == bench.items
    find_function("restyled")(CrossFit(Everything, bench), texts)
    sources = [text.source for text in Everything.seen.texts]
    begun = {source.removesuffix(item.subject) for source, item in zip(sources, bench.items, strict=True)}
    assert begun == {"ok so guess what: ", "Minutes. 1. Letters. 2. "}
    for i, source in enumerate(sources):
        ids = torch.tensor([bench.context.model.tokens.encode(source).ids])
        hidden = bench.context.model.module(ids, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(Everything.seen.residuals.values[1, i], hidden[0, -1], rtol=1e-4, atol=1e-4)
    for relation, why in ((given(bench.relation), "state the answer"), (replace(bench.relation, by_token=True), "cut")):
        with pytest.raises(NotApplicableError, match=why):
            find_function("restyled")(CrossFit(Probe, replace(bench, relation=relation)), texts)
    for wrong in ((), ("No slot here.",), ("{subject}",), ("Of {subject}, more",)):
        with pytest.raises(LensbenchError, match="expected one or more that end with"):
            find_function("restyled")(method, wrong)


def test_texts_of_the_facts_own_have_no_twin(bench: Bench) -> None:
    relation = replace(bench.relation, sources={"subject": {"own": "{source}"}})
    with pytest.raises(NotApplicableError, match="do not state the answer"):
        twin_of(replace(bench.items[0], template="own"), relation, 0)


def test_they_are_owed_only_where_an_answer_is_given() -> None:
    methods = {"logit_lens": LogitLens()}
    plain, told = (required_baselines(methods, choose_baselines(None), given=given)["logit_lens"] for given in (0, 1))
    assert set(told) - set(plain) == {"matched_twin", "visible_text", "without_evidence"}
    assert not any(told[name]["essential"] for name in set(told) - set(plain))


def write(folder: Path, *, stated: bool) -> str:
    """A task of one relation about 30 texts, whose sources state the answer or do not."""
    text = "Keep {answer} in mind. Copy this: {subject}" if stated else "See: {subject}"
    folder.mkdir()
    (folder / "task.toml").write_text(
        f"""name = "{folder.name}"
summary = "Made for a test."
[relations.likes]
kind = "class"
given = {str(stated).lower()}
summary = "text → drink"
inspection = ["The drink of {{subject}} is"]
questions = ["Which drink has {{subject}}? Answer:"]
choice_sets = [["beer", "tea", "wine"]]
[relations.likes.sources.subject]
train = ["Now {text}"]
test = ["{text}"]
"""
    )
    rows = [{"relation": "likes", "subject": f"Bo saw {i}", "answer": CHOICES[i % 3]} for i in range(30)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def test_a_run_has_them_where_the_answer_is_given_and_is_as_before_elsewhere(
    tmp_path: Path, isolated_cache: Path
) -> None:
    module = tiny.module("llama")
    module.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    settings = {"model": str(tmp_path / "model"), "inspectors": ("logit_lens",), "layers": "0,2,4"}
    told = evaluate(**settings, tasks=write(tmp_path / "told", stated=True), out=tmp_path / "a")
    plain = evaluate(**settings, tasks=write(tmp_path / "plain", stated=False), out=tmp_path / "b")
    rivals = {"matched_twin", "visible_text", "without_evidence"}
    assert not told.failed
    assert set(told.records.baseline) - set(plain.records.baseline) == rivals
    assert not rivals & {cell["baseline"] for cell in plain.info["cells"].values()}
    for run in (told, plain):
        assert not run.summary.verdict.fillna("").str.contains("without (?:matched|visible)").any()
    # Beside a task without such a relation they are due there too, and are excused.
    both = evaluate(**settings, tasks=(str(tmp_path / "told"), str(tmp_path / "plain")), out=tmp_path / "c")
    states = {(cell["task"], cell["baseline"]): cell["status"] for cell in both.info["cells"].values()}
    for rival in rivals:
        assert states["told", rival] == "done"
        assert states["plain", rival] == "not applicable"
    twin = told.records[told.records.baseline == "matched_twin"]
    own = told.records[told.records.baseline == "none"]
    assert twin.gold.tolist() == own.gold.tolist()
    assert len(twin) == len(own)
