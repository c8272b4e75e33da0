"""Isolated methods sit a blind exam: all that they would be asked at a place, in one random order, by one fit.

What an exam hands out to methods that run elsewhere, such a method is shown here, in a process that has nothing else:
it cannot tell its own items from what baselines show it. See docs/decisions/0012-exams.md.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from lensbench.baselines.spec import Baseline
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.harness.recording import (
    WITHOUT_TEXT,
    Question,
    Recorder,
    Recording,
    evidence_of,
    numbers_of,
    was_recorded,
)
from lensbench.inspectors.scores import Scores
from lensbench.results.records import NO_BASELINE

Place = tuple[str, str]
READ = frozenset({"unplanted", "twin"})
"""The models that baselines show a method in the target's place."""


def outcomes_of(method: CrossFit, baseline: Baseline | None) -> list[Outcome]:
    """Return the outcomes of a baseline, or the method's own.

    Raises:
        NotApplicableError: it cannot answer the relation's questions.
    """
    return baseline.run(method) if baseline else [method.exchangeable_outcome()]


@dataclass
class _Traced:
    """What is asked at a place.

    Attributes:
        recording: all of it.
        outcomes: relation and baseline → outcomes that consist of numbers; absent where no method is asked.
    """

    recording: Recording
    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)


@dataclass
class BlindAnswers:
    """The answers of isolated methods that read nothing of an item but its activation, and learn no labels.

    Args:
        seed: of the order in which they are asked.
    """

    seed: int
    _traced: dict[Place, _Traced] = field(default_factory=dict)
    _answered: dict[tuple[Place, str], "_Sheet | None"] = field(default_factory=dict)

    def outcomes(
        self, place: Place, method: CrossFit, baseline: str, benches: Sequence[Bench], known: Mapping[str, Baseline]
    ) -> list[Outcome]:
        """Return the outcomes of a method, or of one of its baselines, for the bench that it is at work on.

        Args:
            place: task and site.
            method: the method, isolated.
            baseline: its name, or `none` for the method itself.
            benches: all of the place.
            known: the baselines of the run.

        Raises:
            NotApplicableError: the method cannot answer the relation's questions.
        """
        if place not in self._traced:
            self._traced[place] = _trace(place, benches, known.values())
        traced = self._traced[place]
        found = traced.outcomes.get((method.bench.relation.name, baseline))
        if found is None:
            return outcomes_of(method, known.get(baseline))
        key = (place, method.inspector.name)
        if key not in self._answered:
            self._answered[key] = _sit(method, traced.recording, f"{self.seed}/{place}")
        sheet = self._answered[key]
        if sheet is None:
            return outcomes_of(method, known.get(baseline))
        return [replace(one, scores=sheet.scores(one)) for one in found]

    def forget(self, place: Place) -> None:
        """Forget what was asked and answered at a place."""
        self._traced.pop(place, None)
        for key in [key for key in self._answered if key[0] == place]:
            del self._answered[key]


def _trace(place: Place, benches: Sequence[Bench], baselines: Iterable[Baseline]) -> _Traced:
    """Let a recorder be asked everything."""
    found = _Traced(Recording(place[1]))
    shown = [
        one for one in baselines
        if one.applies_to("nothing", frozenset(WITHOUT_TEXT)) and ("activation" in one.reads or READ & set(one.needs))
    ]  # fmt: skip
    for bench in benches:
        method = CrossFit(partial(Recorder, found.recording), bench)
        if not method.exchangeable:
            continue
        for baseline in (None, *shown):
            try:
                outcomes = outcomes_of(method, baseline)
            except Exception:
                continue  # whatever it is, the baseline's own cell meets it, and says so
            if all(was_recorded(one.scores) for one in outcomes):
                found.outcomes[bench.relation.name, baseline.name if baseline else NO_BASELINE] = outcomes
    return found


@dataclass
class _Sheet:
    """The answers of one method at one place.

    Attributes:
        name: the method's.
        scores_of: question and layer → the scores of all that was asked of them.
        at: number → where its scores are.
        refused: question and layer → why the method cannot answer.
    """

    name: str
    scores_of: dict[tuple[Question, int], Scores]
    at: dict[int, tuple[tuple[Question, int], int]]
    refused: dict[tuple[Question, int], NotApplicableError]

    def scores(self, outcome: Outcome) -> Scores:
        """Return the answers in the numbers' place.

        Raises:
            NotApplicableError: the method cannot answer the question.
        """
        layers = []
        for row in numbers_of(outcome.scores, f"a baseline of {self.name}"):
            (asked,) = {self.at[number][0] for number in row.tolist()}
            if asked in self.refused:
                raise self.refused[asked]
            layers.append(self.scores_of[asked].select(items=[self.at[number][1] for number in row.tolist()]))
        return Scores.concat(layers, range(len(layers)), axis="layer")


def _sit(method: CrossFit, recording: Recording, seed: str) -> _Sheet | None:
    """Have a method answer everything, in a random order; None if it makes other attempts at other layers."""
    context = method.bench.context
    inspector = method.fit(None, context.layers)
    groups: dict[tuple[Question, int], list[int]] = defaultdict(list)
    for number in random.Random(seed).sample(range(len(recording.asked)), len(recording.asked)):
        asked = recording.asked[number]
        groups[asked.question, asked.layer].append(number)
    sheet = _Sheet(inspector.name, {}, {}, {})
    for (question, layer), numbers in groups.items():
        values = np.stack([recording.asked[number].activation for number in numbers])
        sheet.at |= {number: ((question, layer), i) for i, number in enumerate(numbers)}
        try:
            scores = inspector.inspect(evidence_of(inspector.reads, question, layer, values, context.model))
        except NotApplicableError as error:
            sheet.refused[question, layer] = error
            continue
        scores.validate(inspector.name, (1, len(numbers), len(question.answers)))
        sheet.scores_of[question, layer] = scores
    return sheet if len({one.attempts for one in sheet.scores_of.values()}) <= 1 else None
