import random
import re
from collections import defaultdict
from dataclasses import replace

import pytest

from lensbench.audit import DEFAULT_THRESHOLDS, Finding, audit_task, character_accuracy
from lensbench.tasks import Fact, Task, fold_of, load_task


@pytest.fixture(scope="module")
def shipped() -> Task:
    return load_task("attribute_extraction")


def readme_rows(task: Task) -> dict[tuple[str, str], tuple[float, float]]:
    """Value and threshold by relation and check, from the leak table of the task's README."""
    text = (task.folder / "README.md").read_text(encoding="utf-8").split("## Leak audit")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| ([a-z ]+) \| (-?[\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    return {(relation, check): (float(value), float(limit)) for relation, check, value, limit in rows}


def test_shipped_task_is_as_its_readme_says(shipped):
    rows = readme_rows(shipped)
    general = {check: limit for (relation, check), (_, limit) in rows.items() if relation == "all"}
    assert general == {check: limit for check, limit in DEFAULT_THRESHOLDS.items() if check != "token collisions"}
    own = {key: limit for key, (_, limit) in rows.items() if key[0] != "all"}
    findings = audit_task(shipped, thresholds=own)
    assert [finding for finding in findings if not finding.ok] == []
    others = defaultdict(list)
    for finding in findings:
        if (finding.relation, finding.check) in own:
            # The figure itself, so that the table cannot drift; other versions of scikit-learn may round otherwise.
            assert finding.value == pytest.approx(rows[finding.relation, finding.check][0], abs=0.02), finding
        else:
            others[finding.check].append(finding.value)
    for check, values in others.items():
        assert max(values) == pytest.approx(rows["all", check][0], abs=0.02), check


def toy(shipped: Task, relation: str, facts: list[tuple[str, str]], **changes) -> Task:
    new = replace(shipped.relations[relation], **changes)
    made = tuple(Fact(relation, s, a, (), fold_of(s), i) for i, (s, a) in enumerate(facts, 1))
    return replace(shipped, relations={relation: new}, facts=made)


def finding(task: Task, check: str, tokenizer=None) -> Finding:
    return next(found for found in audit_task(task, tokenizer) if found.check == check)


def subjects(n: int) -> list[str]:
    return [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{i}" for i in range(n)]


def test_planted_leaks_are_found(shipped):
    order = sorted(random.Random(0).sample(subjects(200), 200), key=fold_of)
    facts = [(name, ("Asia", "Africa")[i % 2]) for i, name in enumerate(order)]
    sets = (("Africa", "Asia"),)
    clean = toy(shipped, "country_continent", facts, choice_sets=sets)
    assert all(found.ok for found in audit_task(clean))

    leaky = toy(shipped, "country_continent", [("Asia Minor", "Asia"), *facts], choice_sets=sets)
    assert not finding(leaky, "answer in subject").ok

    prompt = ("As in Asia, the continent of {subject} is",)
    assert not finding(
        toy(shipped, "country_continent", facts, choice_sets=sets, inspection=prompt), "answer in text"
    ).ok

    sources = {"subject": {"test0": "We left the continent of {subject}"}}
    found = finding(toy(shipped, "country_continent", facts, choice_sets=sets, sources=sources), "relation words")
    assert (found.ok, found.detail) == (False, "continent")

    one_sided = [(name, "Asia" if i % 10 else "Africa") for i, (name, _) in enumerate(facts)]
    task = toy(shipped, "country_continent", one_sided, choice_sets=sets)
    assert finding(task, "best constant").value == pytest.approx(0.4)
    single = toy(shipped, "country_continent", [(name, "Asia") for name, _ in facts], choice_sets=sets)
    assert not finding(single, "too few classes").ok

    by_fold = [(name, ("Asia", "Africa")[fold_of(name) == 0]) for name, _ in facts]
    assert not finding(toy(shipped, "country_continent", by_fold, choice_sets=sets), "fold imbalance").ok

    same = [(f"{name} city", answer) for name, answer in facts]
    assert not finding(toy(shipped, "country_continent", facts + same, choice_sets=sets), "near duplicates").ok


def test_token_collisions_need_a_tokenizer(shipped):
    facts = [(name, ("North America", "South America")[i % 2]) for i, name in enumerate(subjects(40))]
    task = toy(shipped, "country_continent", facts, choice_sets=(("North America", "South America"),))
    assert "token collisions" not in {found.check for found in audit_task(task)}
    assert finding(task, "token collisions", lambda text: [ord(c) for c in text]).value == 1
    assert finding(task, "token collisions", lambda text: [ord(text[1])]).value == 0


def test_characters_betray_what_is_written_in_them():
    names = subjects(150)
    folds = [fold_of(name) for name in names]
    told = ["ab"[name[0] < "m"] for name in names]
    accuracy, null = character_accuracy(names, told, folds)
    assert accuracy > 0.9 > null
    untold = ["ab"[int(name[2:]) * 7919 % 101 < 50] for name in names]
    accuracy, null = character_accuracy(names, untold, folds)
    assert accuracy <= null + 0.05


def test_gold_position(shipped):
    relation = shipped.relations["country_capital"]
    firsts = [(f"x{i}y", choices[0]) for i, choices in enumerate(relation.choice_sets)]
    task = toy(shipped, "country_capital", firsts)
    assert finding(task, "gold is first").value == pytest.approx(1 - 1 / 8)
    assert finding(task, "gold is median").value == pytest.approx(-1 / 8)
