"""What a model knows, by a model whose answers are made up."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lensbench.harness import knowledge
from lensbench.harness.knowledge import Knowledge, shares
from lensbench.models.language_model import LanguageModel
from lensbench.models.token_scores import TokenScores
from lensbench.tasks import load_task

ANSWERS = ("blue", "green", "red", "white")
TOML = """name = "toy"
summary = "A toy."

[relations.home]
kind = "class"
summary = "thing → colour"
inspection = ["The colour of {subject} is"]
questions = ["Which colour has {subject}? Answer:"]
knowledge = ["K1 {subject}", "K2 {subject}"]
choice_sets = [["blue", "green", "red", "white"]]
[relations.home.sources.t1]
train = ["They saw {subject}"]
test = ["I know {subject}"]

[relations.chain]
kind = "class"
summary = "thing → colour → colour"
inspection = ["The other of {subject} is"]
questions = ["Which other has {subject}? Answer:"]
knowledge = ["C1 {subject}", "C2 {subject}"]
hops = {first = "home", second = ["S1 {bridge}", "S2 {bridge}"], correct = true}
choice_sets = [["blue", "green", "red", "white"]]
[relations.chain.sources.t2]
train = ["They saw {subject} and"]
test = ["I know {subject} and"]
"""
NEXT = {"blue": "green", "green": "red", "red": "white", "white": "blue"}


def home(i: int) -> str:
    return ANSWERS[i % 4]


@pytest.fixture
def task(tmp_path: Path):
    facts = [{"relation": "home", "subject": f"thing {i}", "answer": home(i)} for i in range(40)]
    facts += [
        {"relation": "chain", "subject": f"thing {i}", "answer": NEXT[home(i)], "bridge": home(i)} for i in range(40)
    ]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "task.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "toy" / "items.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    return load_task(str(tmp_path / "toy"))


class Model(LanguageModel):
    """Says what it is told to say."""

    fingerprint, attention = "f", "sdpa"
    device, parts = SimpleNamespace(type="cpu"), SimpleNamespace(paths="p")

    def __init__(self, says, monkeypatch) -> None:
        self.says, self.asked = says, 0
        self.tokens = SimpleNamespace(answer_token=ANSWERS.index)
        self.dtype = torch.float32
        monkeypatch.setattr(knowledge, "score_next_tokens", self.ask)

    def ask(self, _model, texts, tokens) -> TokenScores:
        self.asked += len(texts)
        rows = torch.tensor([[float(ANSWERS[token] == self.says(text)) for token in tokens] for text in texts])
        return TokenScores(rows, rows.long(), rows[:, :0].long())


def number(text: str) -> int:
    return int(text.split()[-1])


def answers(text: str) -> str:
    """Knows the homes of the first twenty things, says one home for ten, and two for the rest; chains: see below."""
    kind, rest = text.split(" ", 1)
    if kind in ("S1", "S2"):
        return NEXT[rest] if rest != "red" else "red"
    i = number(text)
    if kind in ("K1", "K2"):
        if i < 20:
            return home(i)
        return "blue" if i < 30 else ("green" if kind == "K1" else "red")
    return NEXT[home(i)] if i < 8 or (i == 9 and kind == "C2") else "white"


def test_both_prompts_must_be_right(task, monkeypatch) -> None:
    known = Knowledge(Model(answers, monkeypatch), task).known("home")
    lucky = {i for i in range(20, 30) if home(i) == "blue"}
    assert {name for name, right in known.items() if right} == {f"thing {i}" for i in {*range(20), *lucky}}


def test_a_chain_is_known_by_its_hops(task, monkeypatch) -> None:
    known = Knowledge(Model(answers, monkeypatch), task).known("chain")
    expected = {i for i in range(20) if home(i) != "red"} | {i for i in range(20, 30) if home(i) == "blue"}
    assert {name for name, right in known.items() if right} == {f"thing {i}" for i in expected}


def test_correctable_are_known_hops_and_two_failures(task, monkeypatch) -> None:
    reasons = Knowledge(Model(answers, monkeypatch), task).correctable("chain")
    left = {int(fact.subject.split()[1]) for fact in task.facts if fact.relation == "chain"} - {
        int(name.split()[1]) for name in reasons
    }
    # Thing 9 is answered once; things that are `red` have an unknown second hop; "white" is sometimes right.
    expected = {i for i in range(8, 20) if i != 9 and home(i) != "red" and NEXT[home(i)] != "white"}
    expected |= {i for i in range(20, 30) if home(i) == "blue"}
    assert left == expected
    assert reasons["thing 1"] == "the model answers the chain"
    assert reasons["thing 35"] == "the model does not know both hops"


def test_share_is_corrected_for_guessing(task, monkeypatch) -> None:
    share = Knowledge(Model(answers, monkeypatch), task).share("home")
    lucky = sum(home(i) == "blue" for i in range(20, 30))
    assert share.known == pytest.approx((20 + lucky) / 40)
    # Ten agreed answers were guesses of one in four: what is left is near what is truly known, one half.
    assert share.corrected == pytest.approx((20 + lucky - (10 - lucky) / 3) / 40)
    assert abs(share.corrected - 0.5) < abs(share.known - 0.5) + 1e-9


def test_a_guesser_knows_nothing(task, monkeypatch) -> None:
    share = Knowledge(Model(lambda _: "green", monkeypatch), task).share("home")
    assert share.known == pytest.approx(0.25)
    assert share.corrected == pytest.approx(0.0)


def test_asked_once_and_kept(task, monkeypatch, tmp_path) -> None:
    model = Model(answers, monkeypatch)
    first = Knowledge(model, task, tmp_path / "kept")
    found = shares(first, ["home", "chain"])
    asked = model.asked
    assert asked == 80 + 80
    assert shares(Knowledge(model, task, tmp_path / "kept"), ["home", "chain"]) == found
    assert model.asked == asked
    other = Model(answers, monkeypatch)
    other.fingerprint = "g"
    shares(Knowledge(other, task, tmp_path / "kept"), ["home"])
    assert other.asked == 80


def test_without_prompts_nothing_is_known(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    text = TOML.split("[relations.chain]")[0].replace('knowledge = ["K1 {subject}", "K2 {subject}"]\n', "")
    (folder / "task.toml").write_text(text, encoding="utf-8")
    facts = [{"relation": "home", "subject": f"thing {i}", "answer": home(i)} for i in range(40)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    found = Knowledge(Model(answers, monkeypatch), load_task(str(folder)))
    assert found.known("home") is None
    assert shares(found, ["home"]) == {}


def test_choices_that_begin_alike_are_not_told_apart(task, monkeypatch) -> None:
    model = Model(lambda _: "blue", monkeypatch)
    model.tokens = SimpleNamespace(answer_token=lambda answer: 0 if answer in ("blue", "green") else 1)
    asked = []

    def ask(_model, texts, tokens) -> TokenScores:
        asked.extend(texts)
        rows = torch.tensor([[1.0 - token for token in tokens] for _ in texts])
        return TokenScores(rows, rows.long(), rows[:, :0].long())

    monkeypatch.setattr(knowledge, "score_next_tokens", ask)
    found = Knowledge(model, task)
    assert not any(found.known("home").values())
    assert found.share("home").known == 0


def test_only_those_drawn_are_asked(task, monkeypatch) -> None:
    model = Model(answers, monkeypatch)
    found = Knowledge(model, task)
    assert set(found.known("home", ["thing 1", "thing 2"])) == {"thing 1", "thing 2"}
    assert model.asked == 4
    found.known("home", ["thing 2", "thing 3"])
    assert model.asked == 6
    assert found.share("home", ["thing 1", "thing 2", "thing 3"]).facts == 3
    assert model.asked == 6


def test_a_damaged_cache_is_asked_again(task, monkeypatch, tmp_path) -> None:
    model = Model(answers, monkeypatch)
    before = Knowledge(model, task, tmp_path).known("home")
    (file,) = tmp_path.glob("*.json")
    file.write_text("{", encoding="utf-8")
    assert Knowledge(model, task, tmp_path).known("home") == before


@pytest.mark.parametrize(
    "damage", [lambda text: text.replace("blue", "green"), lambda text: text[:50], lambda _text: "[]"]
)
def test_a_damaged_file_is_asked_again(damage, task, monkeypatch, tmp_path, caplog) -> None:
    right = Knowledge(Model(answers, monkeypatch), task, tmp_path).known("home")
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage(file.read_text()))
    with caplog.at_level(logging.WARNING, "lensbench"):
        assert Knowledge(Model(answers, monkeypatch), task, tmp_path).known("home") == right
    assert "is not used, and made again" in caplog.text
    again = Model(answers, monkeypatch)
    assert Knowledge(again, task, tmp_path).known("home") == right
    assert again.asked == 0


def test_where_the_answer_is_given_the_prompts_state_it(task, monkeypatch) -> None:
    home = task.relations["home"]
    home = replace(home, given=True, knowledge=("K1 {answer} {subject}", "K2 {subject} {answer} {subject}"))
    task = replace(task, every=replace(task.every, relations={**task.every.relations, "home": home}))
    texts = []
    model = Model(lambda text: texts.append(text) or text.split()[-3], monkeypatch)
    known = Knowledge(model, task).known("home")
    facts = [fact for fact in task.facts if fact.relation == "home"]
    assert set(texts) == {f"K1 {f.answer} {f.subject}" for f in facts} | {
        f"K2 {f.subject} {f.answer} {f.subject}" for f in facts
    }
    assert known == {fact.subject: True for fact in facts}
