"""What a model knows: whether it answers two questions about a fact that no method or baseline is scored on.

It stratifies results; no verdict is given on what it selects.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import score_next_tokens
from lensbench.tasks.facts import ANSWER_SLOT, BRIDGE_SLOT, SLOT, Fact, Relation
from lensbench.tasks.items import Task
from lensbench.tasks.names import name_key
from lensbench.utils.cache import KNOWLEDGE, cache_root, read_sealed, write_sealed
from lensbench.utils.code import code_digest

LOG = logging.getLogger("lensbench")

Picks = dict[str, tuple[str, ...]]
"""Of each subject the answer picked to each prompt."""


@dataclass(frozen=True)
class KnownShare:
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
    """What one model knows of one task; measured once, and kept in the cache.

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

    def known(self, relation: str, subjects: Collection[str] | None = None) -> dict[str, bool] | None:
        """Whether the model knows each subject's fact; of a chain, both its hops. None without knowledge prompts.

        Args:
            relation: its name.
            subjects: those to ask about; None means all.
        """
        hops = self._relations[relation].hops
        if hops is None:
            return self._right(relation, subjects)
        facts = self._about(relation, subjects)
        names = {name_key(fact.subject) for fact in facts}
        first = self._right(hops.first, [f.subject for f in self._facts[hops.first] if name_key(f.subject) in names])
        if first is None:
            return None
        # Another people's file may spell a subject in two ways.
        right = {name_key(subject): known for subject, known in first.items()}
        second = self._second_hop(relation, hops.second, facts)
        return {
            fact.subject: right.get(name_key(fact.subject), False) and second[str(fact.bridge)] == {fact.answer}
            for fact in facts
        }

    def correctable(self, relation: str, subjects: Collection[str] | None = None) -> dict[str, str]:
        """Of a chain's subjects, why there is nothing to correct; empty for those whose hops are known and chain not.

        Subjects that are not in it can be corrected: the model knows both hops, and both phrasings of the chain fail.
        """
        known, picks = self.known(relation, subjects), self._picks(relation, subjects)
        reasons = {}
        for fact in self._about(relation, subjects):
            if known is None or picks is None:
                reasons[fact.subject] = "the relation has no knowledge prompts"
            elif not known[fact.subject]:
                reasons[fact.subject] = "the model does not know both hops"
            elif fact.answer in picks[fact.subject]:
                reasons[fact.subject] = "the model answers the chain"
        return reasons

    def share(self, relation: str, subjects: Collection[str] | None = None) -> KnownShare | None:
        """How much of a relation is known; None without knowledge prompts.

        Of a chain it is the chain itself that is asked, not its hops.
        """
        picks = self._picks(relation, subjects)
        if picks is None:
            return None
        facts, own = self._about(relation, subjects), self._relations[relation]
        agreed = [(set(picks[fact.subject]), fact) for fact in facts if len(set(picks[fact.subject])) == 1]
        agreed = [(pick, fact) for pick, fact in agreed if pick != {""}]
        right = [fact for pick, fact in agreed if pick == {fact.answer}]
        wrong = [fact for pick, fact in agreed if pick != {fact.answer}]
        luck = sum(1 / (len(own.choices_of(fact.answer)) - 1) for fact in wrong)
        return KnownShare(len(facts), len(right) / len(facts), (len(right) - luck) / len(facts))

    def _about(self, relation: str, subjects: Collection[str] | None) -> list[Fact]:
        wanted = None if subjects is None else set(subjects)
        return [fact for fact in self._facts[relation] if wanted is None or fact.subject in wanted]

    def _right(self, relation: str, subjects: Collection[str] | None) -> dict[str, bool] | None:
        picks = self._picks(relation, subjects)
        if picks is None:
            return None
        return {fact.subject: set(picks[fact.subject]) == {fact.answer} for fact in self._about(relation, subjects)}

    def _picks(self, relation: str, subjects: Collection[str] | None) -> Picks | None:
        own = self._relations[relation]
        if not own.knowledge:
            return None
        facts = self._about(relation, subjects)
        choices = {fact.subject: own.choices_of(fact.answer) for fact in facts}
        return self._asked(own, own.knowledge, SLOT, choices, {fact.subject: fact.answer for fact in facts})

    def _second_hop(self, relation: str, prompts: Sequence[str], facts: Sequence[Fact]) -> dict[str, set[str]]:
        """What is picked for each bridge."""
        own = self._relations[relation]
        choices = {str(fact.bridge): own.choices_of(fact.answer) for fact in facts}
        picks = self._asked(own, prompts, BRIDGE_SLOT, choices)
        return {bridge: set(picks[bridge]) for bridge in choices}

    def _asked(
        self,
        relation: Relation,
        prompts: Sequence[str],
        slot: str,
        choices: Mapping[str, tuple[str, ...]],
        given: Mapping[str, str] = MappingProxyType({}),
    ) -> Picks:
        """Return the answers picked; only names without a stored answer are asked.

        Where prompts state the answer, `given` has it for each name.
        """
        kept = self._kept.setdefault(f"{relation.name}/{slot}", {})
        missing = [name for name in choices if name not in kept]
        if missing:
            answers = relation.answers
            tokens = [self._model.tokens.answer_token(answer) for answer in answers]
            texts = [
                prompt.replace(ANSWER_SLOT, given.get(name, "")).replace(slot, name)
                for prompt in prompts
                for name in missing
            ]
            rows = score_next_tokens(self._model, texts, tokens).log_probs.cpu().unflatten(0, (len(prompts), -1))
            place = {answer: i for i, answer in enumerate(answers)}
            for i, name in enumerate(missing):
                kept[name] = tuple(_best(choices[name], row, place) for row in rows[:, i])
            self._keep()
        return kept

    @cached_property
    def _file(self) -> Path | None:
        if self._cache is None:
            return None
        model = self._model
        code = (version("lensbench"), code_digest(Knowledge), code_digest(score_next_tokens))
        where = (model.dtype, model.attention, model.device.type, model.parts.paths)
        parts = (model.fingerprint, *where, self._task.every.version, code)
        return self._cache / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.json"

    @cached_property
    def _kept(self) -> dict[str, Picks]:
        if self._file is None or not self._file.exists():
            return {}
        read = read_sealed(self._file)
        return {key: {name: tuple(picks) for name, picks in own.items()} for key, own in (read or {}).items()}

    def _keep(self) -> None:
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_sealed(self._file, self._kept)
            except OSError as error:
                LOG.warning("cannot keep what %s knows: %s", self._model.name, error.strerror)


def knowledge_cache() -> Path:
    """Return the folder of what models know."""
    return cache_root() / KNOWLEDGE


def _best(choices: Sequence[str], scores: Tensor, place: Mapping[str, int]) -> str:
    """The best choice; none of them where two that begin with the same token are equally good."""
    score = {answer: float(scores[place[answer]]) for answer in choices}
    best = [answer for answer in choices if score[answer] == max(score.values())]
    return best[0] if len(best) == 1 else ""


def shares(
    knowledge: Knowledge, relations: Sequence[str], subjects: Mapping[str, Collection[str]] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Return what is known of each relation that has knowledge prompts, as plain values.

    Args:
        knowledge: of a model and a task.
        relations: by name.
        subjects: by relation, those to ask about; all of those that are not in it.
    """
    found = {name: knowledge.share(name, subjects.get(name)) for name in relations}
    return {name: asdict(share) for name, share in found.items() if share is not None}
