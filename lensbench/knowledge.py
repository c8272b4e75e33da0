"""What a model knows: whether it gives a fact's answer to two questions that no method or rival is scored by.

It stratifies results; no verdict is given on what it selects.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lensbench.asking import ask
from lensbench.cache import KNOWLEDGE, atomic_file, cache_root
from lensbench.model.language_model import LanguageModel
from lensbench.tasks import Fact, Relation, Task
from lensbench.tasks.facts import BRIDGE_SLOT, SLOT

Picks = Mapping[str, tuple[str, ...]]
"""Of each subject the answer picked to each prompt."""


@dataclass(frozen=True)
class Share:
    """How much of a relation a model knows.

    Attributes:
        facts: how many were asked.
        known: the share of which both prompts get the right answer.
        corrected: the same, corrected for guessing: agreed wrong answers tell how many agreed right ones were luck.
    """

    facts: int
    known: float
    corrected: float


class Knowledge:
    """What one model knows of one task; asked once, and kept in the cache.

    Args:
        model: who is asked.
        task: what.
        cache: the folder of earlier answers; None keeps none.
    """

    def __init__(self, model: LanguageModel, task: Task, cache: Path | None = None) -> None:
        self._model = model
        self._task = task
        self._cache = cache
        self._relations = task.every.relations
        self._facts: dict[str, list[Fact]] = {}
        for fact in task.every.facts:
            self._facts.setdefault(fact.relation, []).append(fact)

    def known(self, relation: str) -> dict[str, bool] | None:
        """Whether the model knows each subject's fact; of a chain, both its hops. None without knowledge prompts."""
        hops = self._relations[relation].hops
        if hops is None:
            return self._right(relation)
        first, second = self._right(hops.first), self._second_hop(relation)
        if first is None:
            return None
        return {fact.subject: first[fact.subject] and second[str(fact.bridge)] for fact in self._facts[relation]}

    def correctable(self, relation: str) -> dict[str, str]:
        """Of a chain's subjects, why there is nothing to correct; empty for those whose hops are known and chain not.

        Subjects that are not in it can be corrected: the model knows both hops, and both phrasings of the chain fail.
        """
        known, picks = self.known(relation), self._picks(relation)
        reasons = {}
        for fact in self._facts[relation]:
            if known is None or picks is None:
                reasons[fact.subject] = "the relation has no knowledge prompts"
            elif not known[fact.subject]:
                reasons[fact.subject] = "the model does not know both hops"
            elif fact.answer in picks[fact.subject]:
                reasons[fact.subject] = "the model answers the chain"
        return reasons

    def share(self, relation: str) -> Share | None:
        """How much of a relation is known; None without knowledge prompts.

        Of a chain it is the chain itself that is asked, not its hops.
        """
        picks = self._picks(relation)
        if picks is None:
            return None
        facts, own = self._facts[relation], self._relations[relation]
        agreed = [(set(picks[fact.subject]), fact) for fact in facts if len(set(picks[fact.subject])) == 1]
        right = [fact for pick, fact in agreed if pick == {fact.answer}]
        wrong = [fact for pick, fact in agreed if pick != {fact.answer}]
        luck = sum(1 / (len(own.choices_of(fact.answer)) - 1) for fact in wrong)
        return Share(len(facts), len(right) / len(facts), (len(right) - luck) / len(facts))

    def _right(self, relation: str) -> dict[str, bool] | None:
        picks = self._picks(relation)
        if picks is None:
            return None
        return {fact.subject: set(picks[fact.subject]) == {fact.answer} for fact in self._facts[relation]}

    def _picks(self, relation: str) -> Picks | None:
        own = self._relations[relation]
        if not own.knowledge:
            return None
        choices = {fact.subject: own.choices_of(fact.answer) for fact in self._facts[relation]}
        return self._asked(own, own.knowledge, SLOT, choices)

    def _second_hop(self, relation: str) -> dict[str, bool]:
        own = self._relations[relation]
        assert own.hops is not None
        answers = {str(fact.bridge): fact.answer for fact in self._facts[relation]}
        choices = {bridge: own.choices_of(answer) for bridge, answer in answers.items()}
        picks = self._asked(own, own.hops.second, BRIDGE_SLOT, choices)
        return {bridge: set(picks[bridge]) == {answer} for bridge, answer in answers.items()}

    def _asked(
        self, relation: Relation, prompts: Sequence[str], slot: str, choices: Mapping[str, tuple[str, ...]]
    ) -> Picks:
        key = f"{relation.name}/{slot}"
        if key not in self._kept:
            answers = relation.answers
            tokens = [self._model.tokens.answer_token(answer) for answer in answers]
            texts = [prompt.replace(slot, name) for prompt in prompts for name in choices]
            scores = ask(self._model, texts, tokens).log_probs.cpu()
            place = {answer: i for i, answer in enumerate(answers)}
            picks: dict[str, tuple[str, ...]] = dict.fromkeys(choices, ())
            for name, row in zip([name for _ in prompts for name in choices], scores, strict=True):
                best = max(choices[name], key=lambda answer: float(row[place[answer]]))
                picks[name] += (best,)
            self._kept[key] = picks
            self._keep()
        return self._kept[key]

    @cached_property
    def _file(self) -> Path | None:
        if self._cache is None:
            return None
        model = self._model
        parts = (model.fingerprint, model.dtype, model.device.type, model.parts.paths, self._task.every.version)
        return self._cache / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.json"

    @cached_property
    def _kept(self) -> dict[str, Picks]:
        if self._file is None or not self._file.exists():
            return {}
        read = json.loads(self._file.read_text(encoding="utf-8"))
        return {key: {name: tuple(picks) for name, picks in own.items()} for key, own in read.items()}

    def _keep(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._file) as file:
                file.write(json.dumps(self._kept, ensure_ascii=False).encode())


def knowledge_cache() -> Path:
    """Return the folder of what models know."""
    return cache_root() / KNOWLEDGE


def shares(knowledge: Knowledge, relations: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of each relation that has knowledge prompts, as plain values."""
    found = {name: knowledge.share(name) for name in relations}
    return {name: asdict(share) for name, share in found.items() if share is not None}
