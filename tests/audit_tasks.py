"""A task without a leak, and for each check of the audit the same task with one leak planted in it, as files."""

import copy
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lensbench.tasks import N_FOLDS, fold_of

ANSWERS = ("amber", "ivory", "olive", "violet")
# Not in the alphabet's order, so that a leak by popularity is not one by place.
POPULARITY = {"amber": 1.0, "ivory": 2.0, "olive": 4.0, "violet": 3.0}
PER_CELL = 12
"""Facts of each answer in each fold."""

Relation = dict[str, Any]
Facts = list[dict[str, Any]]


def names(seed: int, ending: str = "") -> Iterator[str]:
    """Endless invented names, none of them twice."""
    rng, seen = random.Random(seed), set()
    while True:
        name = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)).title() + ending
        if name not in seen:
            seen.add(name)
            yield name


def make_facts(
    share: Callable[[int, str], int] = lambda fold, answer: PER_CELL, ending: Callable[[str], str] = lambda answer: ""
) -> Facts:
    """Facts with as many of each answer in each fold as `share` says, their names ending as `ending` says."""
    made: Facts = []
    for place, answer in enumerate(ANSWERS):
        wanted = {fold: share(fold, answer) for fold in range(N_FOLDS)}
        count: Counter[int] = Counter()
        # One stream of names for all answers, dealt out in turn: no name is that of two answers.
        for name in itertools.islice(names(0, ending(answer)), place, None, len(ANSWERS)):
            if count[fold_of(name)] < wanted[fold_of(name)]:
                count[fold_of(name)] += 1
                made.append({"subject": name, "answer": answer, "popularity": POPULARITY[answer]})
            if count.total() == sum(wanted.values()):
                break
    return made


def make_relation() -> Relation:
    """What a relation without a leak asks."""
    return {
        "kind": "class",
        "given": False,
        "inspection": ["The favourite colour of {subject} is"],
        "questions": ["Which colour does {subject} prefer? Answer:"],
        "knowledge": ["Ask {subject} for a colour, and hear", "On the wall of {subject} one sees"],
        "choice_sets": [list(ANSWERS)],
        "subject": {"train": ["They waited for {subject}"], "test": ["We walked home with {subject}"]},
        "answer": {"train": ["The house of {subject} is painted"], "test": ["{subject} bought a coat in"]},
    }


def write(folder: Path, relations: dict[str, tuple[Relation, Facts]], readme: str = "") -> Path:
    """Write a task folder."""
    folder.mkdir(parents=True)
    toml, lines = [f'name = "{folder.name}"\nsummary = "Made for a test."'], []
    for name, (relation, facts) in relations.items():
        asked = {key: value for key, value in relation.items() if not isinstance(value, dict)}
        toml.append(f'[relations.{name}]\nsummary = "who → colour"')
        toml += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in asked.items()]
        for site in (key for key, value in relation.items() if isinstance(value, dict)):
            toml.append(f"[relations.{name}.sources.{site}]")
            toml += [f"{split} = {json.dumps(texts)}" for split, texts in relation[site].items()]
        lines += [json.dumps({"relation": name} | fact) for fact in facts]
    (folder / "task.toml").write_text("\n".join(toml) + "\n", encoding="utf-8")
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if readme:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def clean_task(folder: Path) -> Path:
    """A task of a class relation, an open one, and one whose sources state the answer; none gives anything away."""
    open_, given = make_relation(), make_relation()
    colours = [name.lower() for name in itertools.islice(names(7), 32)]
    open_ |= {"kind": "open", "choice_sets": [colours[i : i + 8] for i in range(0, 32, 8)]}
    people = itertools.islice(names(1), 32)
    facts = [
        {"subject": name, "answer": colour, "aliases": [f"{colour}-like"], "popularity": float(i * 7 % 32)}
        for i, (name, colour) in enumerate(zip(people, colours, strict=True))
    ]
    told = "The colour that {subject} likes is {answer}. {subject} came"
    given |= {"given": True, "subject": {"train": [f"Yes. {told}"], "test": [told]}}
    given.pop("answer")
    return write(
        folder, {"likes": (make_relation(), make_facts()), "one": (open_, facts), "told": (given, make_facts())}
    )


Plant = Callable[[Relation, Facts], tuple[Relation, Facts]]


def _text(key: str, text: str) -> Plant:
    return lambda relation, facts: (relation | {key: [text, *relation[key][1:]]}, facts)


def _uneven(share: Callable[[int, str], int]) -> Plant:
    return lambda relation, facts: (relation, make_facts(share))


def _counts(amber: int, ivory: int, olive: int, violet: int) -> Plant:
    count = dict(zip(ANSWERS, (amber, ivory, olive, violet), strict=True))
    return _uneven(lambda fold, answer: count[answer])


def _answer_in_subject(relation: Relation, facts: Facts) -> tuple[Relation, Facts]:
    return relation, [facts[0] | {"subject": f"{facts[0]['subject']} the {facts[0]['answer']}"}, *facts[1:]]


def _single(relation: Relation, facts: Facts) -> tuple[Relation, Facts]:
    return relation, [fact | {"answer": "ivory", "popularity": 2.0} for fact in facts]


def _near(relation: Relation, facts: Facts) -> tuple[Relation, Facts]:
    """Every twelfth subject again, with a word more that puts it into another fold."""
    copies = []
    for fact in facts[::12]:
        longer = (f"{fact['subject']} {word}" for word in itertools.islice(names(3), 99))
        copies.append(fact | {"subject": next(n for n in longer if fold_of(n) != fold_of(fact["subject"]))})
    return relation, facts + copies


def _alias(relation: Relation, facts: Facts) -> tuple[Relation, Facts]:
    two = {"amber": ["Straw"], "ivory": ["straw!"]}
    return relation, [fact | {"aliases": two.get(fact["answer"], [])} for fact in facts]


PLANTS: dict[str, Plant] = {
    "answer in text": _text("inspection", "The favourite colour of {subject}, who hates olive, is"),
    "answer in subject": _answer_in_subject,
    "relation words": lambda relation, facts: (
        relation | {"subject": relation["subject"] | {"test": ["The favourite of all is {subject}"]}},
        facts,
    ),
    "answer in knowledge": _text("knowledge", "Not olive: ask {subject} for a colour, and hear"),
    "knowledge repeats": _text("knowledge", "The favourite colour of {subject} is:"),
    "too few classes": _single,
    "best constant": _counts(9, 7, 8, 16),
    "gold is first": _counts(16, 11, 11, 10),
    "gold is in the middle": _counts(10, 17, 14, 9),
    "median popularity": _counts(9, 15, 9, 15),
    "most popular": _counts(11, 11, 16, 10),
    "fold imbalance": _uneven(lambda fold, answer: PER_CELL if fold == 4 else 30 if ANSWERS[fold] == answer else 6),
    "near duplicates": _near,
    "subject characters": lambda relation, facts: (
        relation,
        make_facts(ending=lambda answer: {"amber": "ska", "ivory": "wen", "olive": "hoy", "violet": "xit"}[answer]),
    ),
    "alias collisions": _alias,
}  # fmt: skip


def planted(check: str) -> tuple[Relation, Facts]:
    """The clean class relation with the leak that a check is to find."""
    return PLANTS[check](copy.deepcopy(make_relation()), make_facts())


def bad_task(folder: Path) -> Path:
    """A task with one relation for each check, called like it, which has the leak that the check is to find."""
    return write(folder, {check.replace(" ", "_"): planted(check) for check in PLANTS})
