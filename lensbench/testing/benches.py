"""A bench of made-up items on a small random model: what methods are checked on, and how scores are compared."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import NotApplicableError
from lensbench.inspectors.scores import Scores
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import small_model
from lensbench.tasks.extents import split_site
from lensbench.tasks.facts import Relation
from lensbench.tasks.items import Item

Make = Callable[[], Inspector]
Check = Callable[[Make, Bench], None]
TOLERANCE = 5e-4


@dataclass(frozen=True)
class Subjects:
    """Made-up subjects and answers, in a relation of two classes."""

    names: tuple[str, ...]
    answers: tuple[str, ...]


LAYERS = 4
CHAIN: str = "t2"
# How items name a subject: alone, or in a chain that is read where the question has been asked.
SOURCES: dict[str, dict[str, str]] = {
    "subject": {"train0": "Once I saw {subject}", "test0": "We talk about {subject}"},
    CHAIN: {"train0": "I know that the friend of {subject} likes", "test0": "They say the friend of {subject} likes"},
}
HOP = "the friend of {subject}"


def make_bench(
    model: LanguageModel, corpus: Corpus, subjects: Subjects, layers: tuple[int, ...], site: str = "subject"
) -> Bench:
    """Return a bench of invented items, read at a site of `SOURCES`: five folds, answers assigned in turn."""
    return _bench(RunContext(model, model, corpus, layers, seed=0), subjects, site)


def fresh_bench(bench: Bench) -> Bench:
    """Return a bench like another of invented items, with names and answers that no method has met before.

    They are drawn anew at every call, so that nothing that a method has kept of earlier benches is about them.
    """
    tokens, count = bench.context.model.tokens, len(bench.answers)
    words = _new_words()
    answers: dict[int, str] = {}
    while len(answers) < count:
        word = next(words)
        answers.setdefault(tokens.answer_token(word), word)
    names = tuple(f"{next(words).title()} {next(words).title()}" for _ in bench.subjects)
    site = bench.items[0].site
    return _bench(
        bench.context, Subjects(names, tuple(answers.values())), site if split_site(site)[0] in SOURCES else "subject"
    )


def _new_words() -> Iterator[str]:
    """Yield words that nobody knows, none twice."""
    chance, seen = random.SystemRandom(), set()
    while True:
        word = "".join(chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(4))
        if word not in seen:
            seen.add(word)
            yield word


def turned(bench: Bench, fold: int) -> Bench:
    """Return the bench with the next answer for every subject of a fold; its activations are kept."""

    def with_next(item: Item) -> Item:
        place = item.choices.index(item.answer)
        return replace(item, answer=item.choices[(place + 1) % len(item.choices)]) if item.fold == fold else item

    return bench.with_answers(tuple(map(with_next, bench.items)), tuple(map(with_next, bench.train_items)))


def _bench(context: RunContext, subjects: Subjects, site: str) -> Bench:
    place, _ = split_site(site)
    relation = Relation(
        name="made_up",
        kind="class",
        summary="subject → answer",
        inspection=("They say that {subject} likes",),
        questions=("Question: what does {subject} like? Answer:",),
        sources={place: SOURCES[place]},  # type: ignore[dict-item]
        choice_sets=(tuple(sorted(subjects.answers)),),
    )
    items = [
        _item(relation, subjects, i, site, template)
        for template in ("test0", "train0")
        for i in range(len(subjects.names))
    ]
    half = len(items) // 2
    return Bench(context, relation, tuple(items[:half]), tuple(items[half:]))


def _item(relation: Relation, subjects: Subjects, i: int, site: str, template: str) -> Item:
    place, _ = split_site(site)
    text = SOURCES[place][template]
    start, hop = text.index("{subject}"), text.find(HOP)
    name = subjects.names[i]
    return Item(
        id=f"made_up/{name}/{place}/{template}",
        source=text.replace("{subject}", name),
        site=site,
        subject=name,
        subject_span=(start, start + len(name)),
        question=relation.inspection[0],
        choices=relation.choice_sets[0],
        answer=subjects.answers[i % len(subjects.answers)],
        aliases=(),
        relation="made_up",
        # Blocks of one item an answer, so that the answers are balanced in every fold.
        fold=(i // len(subjects.answers)) % 5,
        template=template,
        hop_span=(hop, hop + len(HOP.replace("{subject}", name))) if hop >= 0 else None,
    )


@cache
def small_bench(layers: int = LAYERS, site: str = "subject") -> Bench:
    """Return a bench of twenty made-up subjects on a small random model of so many layers, made once."""
    model = small_model((PROSE / "heldout.txt").read_text(encoding="utf-8"), layers=layers)
    firsts, lasts = ("Bo", "Cy", "Di", "Ed", "Fay"), ("Ash", "Birch", "Cole", "Dow")
    names = tuple(f"{first} {last}" for first in firsts for last in lasts)
    read = tuple(sorted({0, max(0, layers - 2), max(0, layers - 1), layers}))
    return make_bench(model, Corpus(model), Subjects(names, ("tea", "wine")), read, site)


def scores_of(make: Make, bench: Bench) -> Scores:
    """Return what a method, newly made, answers on a bench."""
    try:
        return CrossFit(make, bench).scores()
    except NotApplicableError as error:
        raise AssertionError(f"{make().name} cannot answer the checks' questions: {error}") from None


def require_same(found: Scores, expected: Scores, make: Make, complaint: str) -> None:
    """Refuse scores that are not the expected ones.

    Raises:
        AssertionError: other attempts, or other scores.
    """
    assert found.attempts == expected.attempts, (
        f"{make().name}: attempts {found.attempts}, expected {expected.attempts}"
    )
    torch.testing.assert_close(
        found.log_scores.float().cpu(),
        expected.log_scores.float().cpu(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
        msg=lambda text: f"{make().name}: {complaint}\n{text}",
    )
