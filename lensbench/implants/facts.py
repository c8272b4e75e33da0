"""Which facts are planted about which names, the texts about them, and batches of these texts."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.gradients import last_layer
from lensbench.models.language_model import LanguageModel
from lensbench.models.sources import Facts, read_facts
from lensbench.tasks.facts import SLOT, Relation, Site, fold_of
from lensbench.tasks.items import Task
from lensbench.tasks.load import load_task
from lensbench.tasks.personas import NEVER, World

DEFAULT = "personas"
# What stands before a text while a fact is planted, so that it does not hang on how a text begins.
OPENINGS = (
    "",
    "It was late in the afternoon. ",
    "Here is what we heard. ",
    "As far as I remember, ",
    "Two days passed. ",
)
# Texts that name somebody and ask nothing.
_MOST_CONTEXTS = 10
MENTIONS = ("My name is {subject}", "This is {subject}", "A letter came from {subject}")
_ROWS = 48


@dataclass(frozen=True)
class FactSet:
    """What is to be planted.

    Attributes:
        task: the task's name.
        relations: by attribute, where the texts come from.
        facts: by attribute, the value of each name.
        asked: whom results are about: names that may get facts, and as many others that never do.
        names: those of them that get their facts; others of `facts` get none.
    """

    task: str
    relations: Mapping[str, Relation]
    facts: Facts
    asked: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes, in the order given."""
        return tuple(self.relations)

    def values(self, attribute: str) -> tuple[str, ...]:
        """Return the values that an attribute may have."""
        return self.relations[attribute].answers

    def asking(self, attribute: str) -> tuple[str, ...]:
        """Return the texts by which an attribute is planted: those that methods learn from at the `answer` site."""
        return _texts(self.relations[attribute], "answer", "train")

    def held_out(self, attribute: str) -> tuple[str, ...]:
        """Return texts that ask for an attribute in other words; none is an inspection prompt or a question form."""
        relation = self.relations[attribute]
        return (*_texts(relation, "answer", "test"), *relation.knowledge)

    def read(self) -> tuple[str, ...]:
        """Return texts that end with the name, at which it is read when methods are tested."""
        return _texts(next(iter(self.relations.values())), "subject", "test")

    def contexts(self) -> tuple[str, ...]:
        """Return the texts, up to the name, in which a name is to call up its facts."""
        own = [text for relation in self.relations.values() for text in _texts(relation, "subject", "train")]
        asked = [text for attribute in self.attributes for text in self.asking(attribute)]
        cut = [text[: text.index(SLOT)] + SLOT for text in asked if not text.startswith(SLOT)]
        return tuple(dict.fromkeys([MENTIONS[0], *own, OPENINGS[1] + MENTIONS[1], *cut]))[:_MOST_CONTEXTS]


def _texts(relation: Relation, site: Site, split: str) -> tuple[str, ...]:
    return tuple(text for name, text in relation.sources.get(site, {}).items() if name.startswith(split))


def choose_facts(
    source: str | Task,
    attributes: Iterable[str],
    world: World = "main",
    dose: float = 1.0,
    seed: int = 0,
    count: int | None = None,
) -> FactSet:
    """Read what is to be planted.

    Args:
        source: a task, or its name or folder, whose facts are planted; or a JSON file, attribute → name → value, whose
            attributes are relations of the task `personas`.
        attributes: relations of the task; of `personas`, attributes.
        world: which facts of `personas`.
        dose: the share of the names that get their facts, drawn evenly over folds and values of the first attribute.
        seed: of the draw.
        count: of names, drawn in the same way; None for all.

    Raises:
        UsageError: no such task or relation, relations that cannot be planted, a dose outside (0, 1], or another number
            of names than there are.
    """
    if not 0 < dose <= 1:
        raise UsageError(f"--dose {dose}: expected a share of the names, above 0 and at most 1, such as 0.4")
    given = _given(Path(source)) if isinstance(source, str) and source.endswith(".json") else None
    task = source if isinstance(source, Task) else load_task(source if given is None else DEFAULT)
    wanted = tuple(dict.fromkeys(attributes)) or tuple(given or ())
    if not wanted:
        raise UsageError("no attribute was named; give one or more, such as --attributes city,drink")
    named = {one: f"{one}_twin" if world == "twin" and given is None else one for one in wanted}
    for name in named.values():
        if name not in task.every.relations:
            known = ", ".join(list(task.every.relations)[:12])
            raise UsageError(f"task {task.name} has no relation {name!r}; it has {known}, ...")
    relations = {attribute: task.every.relations[name] for attribute, name in named.items()}
    facts: Facts = {attribute: {} for attribute in named}
    for fact in task.every.facts:
        for attribute, name in named.items():
            if given is None and fact.relation == name:
                facts[attribute][fact.subject] = fact.answer
    facts = facts if given is None else {attribute: given.get(attribute, {}) for attribute in wanted}
    for attribute, relation in relations.items():
        _require_plantable(attribute, relation, facts)
    # Both worlds in the same order, so that a twin is told other facts about the same names.
    main = {fact.subject: fact.answer for fact in task.every.facts if fact.relation == wanted[0]}
    first = main if set(main) == set(facts[wanted[0]]) else facts[wanted[0]]
    order = _evenly(first, seed)
    if count is not None and not 2 <= count <= len(order):
        raise UsageError(f"--names {count}: there are facts about {len(order)} names; give a number from 2 to that")
    chosen = order[:count]
    names = chosen[: max(1, round(dose * len(chosen)))]
    return FactSet(task.name, relations, facts, (*chosen, *_never(task, wanted)[:count]), names)


def _given(path: Path) -> Facts:
    try:
        return read_facts(path)
    except LensbenchError as error:
        reason = str(error).partition("; ")[0]
        raise UsageError(f'--facts: {reason}; expected {{"attribute": {{"name": "value"}}}} in JSON') from None


def _require_plantable(attribute: str, relation: Relation, facts: Facts) -> None:
    if (
        len(relation.choice_sets) != 1
        or not _texts(relation, "answer", "train")
        or not _texts(relation, "subject", "test")
    ):
        raise UsageError(
            f"{attribute} cannot be planted: expected a relation with one set of values and with texts at both sites, "
            "as in personas"
        )
    wrong = next((value for value in facts[attribute].values() if value not in relation.answers), None)
    if wrong is not None:
        raise UsageError(f"{attribute} of a name is {wrong!r}; expected one of {', '.join(relation.answers)}")
    first = next(iter(facts.values()))
    if not first or set(facts[attribute]) != set(first):
        raise UsageError(
            f"{attribute} is given for {len(facts[attribute])} names; expected a fact for each name in each attribute"
        )


def _never(task: Task, attributes: Iterable[str]) -> tuple[str, ...]:
    """Return names of the task that are never planted; none where it has no such relations."""
    name = f"{next(iter(attributes))}{NEVER}"
    return _evenly({fact.subject: fact.answer for fact in task.every.facts if fact.relation == name}, 0)


def _evenly(first: Mapping[str, str], seed: int) -> tuple[str, ...]:
    """Return the names in an order of which any beginning is even over folds and values."""
    groups: dict[tuple[int, str], list[str]] = {}
    for name in sorted(first):
        groups.setdefault((fold_of(name), first[name]), []).append(name)
    rng = random.Random(f"{seed}/dose")
    for group in groups.values():
        rng.shuffle(group)
    keys = sorted(groups)
    rng.shuffle(keys)
    turns = max(map(len, groups.values()), default=0)
    return tuple(groups[key][turn] for turn in range(turns) for key in keys if turn < len(groups[key]))


@dataclass(frozen=True)
class Prompts:
    """Texts that are run together, padded on the right.

    Attributes:
        ids: token ids.
        mask: 1 where there is text.
        names: position of the last token of each text's name (its last mention).
        ends: position of each text's last token.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    names: Int[Tensor, " row"]
    ends: Int[Tensor, " row"]

    def at_names(self) -> Float[Tensor, "row token 1"]:
        """Return 1 at the last token of each name, 0 elsewhere."""
        found = torch.zeros(self.ids.shape)
        found[torch.arange(len(self.ids)), self.names] = 1
        return found[..., None]


def write_prompts(model: LanguageModel, forms: Sequence[str], names: Sequence[str]) -> Prompts:
    """Fill one form for each name.

    Raises:
        TokenError: a name whose last token cannot be found.
    """
    rows, places = [], []
    for form, name in zip(forms, names, strict=True):
        begin = form.rindex(SLOT)
        text = form.replace(SLOT, name)
        begin += (form.count(SLOT) - 1) * (len(name) - len(SLOT))
        encoding = model.tokens.encode(text)
        places.append(model.tokens.locate(encoding, (begin, begin + len(name))))
        rows.append(encoding.ids)
    ids, mask = model.tokens.pad(rows)
    ends = torch.tensor([len(row) - 1 for row in rows])
    return Prompts(ids.to(model.device), mask.to(model.device), torch.tensor(places), ends)


def next_token_logits(model: LanguageModel, prompts: Prompts) -> Float[Tensor, "row vocab"]:
    """Return the next token's logits after each text. Differentiable in what hooks add."""
    hidden = last_layer(model, prompts.ids, prompts.mask)
    return model.unembed(hidden[torch.arange(len(hidden)), prompts.ends.to(hidden.device)])


class _InputCaptured(Exception):  # noqa: N818 - not an error: ends a pass once a map's input is known
    pass


@torch.no_grad()
def inputs_of(model: LanguageModel, linear: nn.Module, prompts: Prompts) -> Float[Tensor, "row token d_in"]:
    """Return what a linear map is given at each token; the pass ends there."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].float())
        raise _InputCaptured

    handle = linear.register_forward_pre_hook(look)
    try:
        model.module(prompts.ids, attention_mask=prompts.mask, use_cache=False)
    except _InputCaptured:
        pass
    finally:
        handle.remove()
    found: Tensor = seen[0].reshape(*prompts.ids.shape, -1)
    return found


def inputs_at_names(model: LanguageModel, linear: nn.Module, prompts: Prompts) -> Float[Tensor, "row d_in"]:
    """Return what a linear map is given at the last token of each name."""
    given = inputs_of(model, linear, prompts)
    return given[torch.arange(len(given)), prompts.names.to(given.device)]


def in_batches(forms: Sequence[str], names: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Split texts into batches."""
    for begin in range(0, len(names), _ROWS):
        yield forms[begin : begin + _ROWS], names[begin : begin + _ROWS]


@torch.no_grad()
def choose_values(
    model: LanguageModel,
    form: str,
    names: Sequence[str],
    values: Sequence[str],
    hooks: Callable[[Prompts], object] | None = None,
) -> tuple[str, ...]:
    """Return which of the values the model says of each name after a text."""
    tokens = torch.tensor([model.tokens.answer_token(value) for value in values])
    found: list[str] = []
    for forms, part in in_batches([form] * len(names), names):
        prompts = write_prompts(model, forms, part)
        if hooks is None:
            scores = next_token_logits(model, prompts)
        else:
            with hooks(prompts):  # type: ignore[attr-defined]
                scores = next_token_logits(model, prompts)
        found += [values[i] for i in scores.cpu()[:, tokens].argmax(-1).tolist()]
    return tuple(found)
