"""From tasks to benches: which items suit a model, and where their read sites are, before anything is run."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lensbench.errors import LensbenchError, TokenError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.next_token import make_prose_bench
from lensbench.inspectors.base import Inspector
from lensbench.models.activations import find_site, too_long
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import make_prompt
from lensbench.tasks import N_FOLDS, Item, Relation, Task
from lensbench.tasks.extents import split_site

LOG = logging.getLogger("lensbench")
Dropped = dict[str, dict[str, str]]
SHORT = 2
"""A first token of no more letters says little of the answer."""


def with_telling_answers(models: Iterable[LanguageModel], task: Task, dropped: Dropped) -> Task:
    """Return the task without the answers whose first token says nothing of them, for all methods alike.

    First tokens are what is scored, and some tokenizers begin an answer with a bare blank (`12` under the built-in
    model) or have none for it. What is left out is noted in `dropped`: task/relation -> answer -> why.

    Raises:
        LensbenchError: no relation keeps two answers of a choice set.
    """
    relations: dict[str, Relation] = {}
    why: dict[str, str] = {}
    for name, relation in task.relations.items():
        silent = {answer: reason for answer in relation.answers if (reason := _silent(models, answer))}
        sets = tuple(tuple(one for one in choices if one not in silent) for choices in relation.choice_sets)
        alone = {
            one: f"of the choices beside {one!r} none can be scored" for one, *more in filter(None, sets) if not more
        }
        sets = tuple(choices for choices in sets if len(choices) > 1)
        why |= silent
        if silent:
            dropped.setdefault(f"{task.name}/{name}", {}).update(silent | alone)
        if sets or not relation.choice_sets:
            relations[name] = replace(relation, choice_sets=sets)
    if not relations:
        example = next(iter(why.values()))
        raise LensbenchError(f"task {task.name}: no two answers can be told apart by their first token ({example})")
    if not why:
        return task
    kept = {name: {*relation.answers} for name, relation in relations.items() if relation.choice_sets}
    facts = (fact for fact in task.facts if fact.relation in relations)
    return replace(
        task,
        relations=relations,
        facts=tuple(f for f in facts if f.relation not in kept or f.answer in kept[f.relation]),
    )


def _silent(models: Iterable[LanguageModel], answer: str) -> str:
    """Why an answer cannot be scored by its first token; empty where it can."""
    for model in models:
        try:
            model.tokens.require_telling(answer)
        except TokenError as error:
            return str(error)
    return ""


def make_benches(context: RunContext, task: Task, site: str, dropped: Dropped) -> list[Bench]:
    """Make a bench for each relation of a task at a site; nothing is captured yet.

    Items whose choices begin with the same token, or whose source is longer than the model reads, are dropped for all
    methods alike, and noted in `dropped`: task/relation -> item -> why.

    Raises:
        LensbenchError: a site that the tokenizer cannot find, a fold left empty, or nothing left at all.
    """
    place, _ = split_site(site)
    test, train = (
        [replace(item, site=site) for item in items]
        for items in (task.items(place, "test", context.limit, context.seed), task.items(place, "train"))
    )
    test, train = ([_written(context.model, item) for item in items] for items in (test, train))
    benches: list[Bench] = []
    for relation in task.relations_at(place).values():
        if relation.kind == "next_token":
            passages = [item for item in test if item.relation == relation.name]
            benches += [make_prose_bench(context, relation, passages)] if passages else []
            continue
        items, train_items = (_distinguishable(context, task, relation, group, dropped) for group in (test, train))
        if relation.by_token:
            items = tuple(cut for item in items for cut in cut_by_token(context.model, item))
        if items:
            _require_folds(context, task, relation, train_items)
            for item in (*items, *train_items):
                find_site(context.model, item)
            benches.append(Bench(context, relation, items, train_items))
    if not benches:
        raise LensbenchError(
            f"task {task.name} has no item left for {context.model.name} at {site}: {_reasons(task, dropped)}; give "
            "other answers or texts, or another model"
        )
    return benches


def _written(model: LanguageModel, item: Item) -> Item:
    """Return an item whose source is a plain text: a conversation as the model's chat template writes it.

    Raises:
        TokenError: there is no template, or it cannot write the turns.
    """
    if not item.turns:
        return item
    try:
        source = model.tokens.written(item.turns)
    except TokenError as error:
        raise TokenError(f"item {item.id} is put in a chat: {error}") from None
    begin = max(0, source.rfind(item.subject))
    end = begin + len(item.subject) if item.subject in source else begin
    return replace(item, source=source, subject_span=(begin, end), turns=())


def _reasons(task: Task, dropped: Dropped) -> str:
    """Why items of a task were dropped, each reason once."""
    found = [why for name, reasons in dropped.items() if name.startswith(f"{task.name}/") for why in reasons.values()]
    return "; ".join(list(dict.fromkeys(found))[:3]) or "it has none"


def tell_dropped(dropped: Dropped) -> None:
    """Log for each relation how many items or answers are left out, and why."""
    for name, reasons in dropped.items():
        counted = Counter(reasons.values())
        parts = [f"{n} ({why})" for why, n in counted.most_common(3)]
        parts += [f"{counted.total() - sum(n for _, n in counted.most_common(3))} more"] if len(counted) > 3 else []
        LOG.warning("%s: left out: %s", name, ", ".join(parts))


def cut_by_token(model: LanguageModel, item: Item) -> Iterator[Item]:
    """Cut an item's source after each token of its name: one item each, the last with the whole name."""
    ends = model.tokens.ends(model.tokens.encode(item.source), item.subject_span)
    for i, end in enumerate(ends, 1):
        cut = f"@{i}/{len(ends)}"
        yield replace(
            item,
            id=item.id + cut,
            template=item.template + cut,
            source=item.source[:end],
            subject_span=(item.subject_span[0], end),
        )


def check_prompts(context: RunContext, inspectors: Iterable[Inspector], benches: Iterable[Iterable[Bench]]) -> None:
    """Check that every prompt of every method has a place for the activation under the verbalizer's tokenizer.

    Raises:
        LensbenchError: no slot, or a placeholder that is not one token of its own, or is token 0.
    """
    asked = {bench.forms for group in benches for bench in group if bench.relation.inspection}
    for inspector in inspectors:
        for own in (own for forms in sorted(asked) for own in inspector.own_prompts(forms)):
            make_prompt(context.verbalizer, own.text, own.placeholder)


def _distinguishable(
    context: RunContext, task: Task, relation: Relation, items: Iterable[Item], dropped: Dropped
) -> tuple[Item, ...]:
    """Keep the relation's items whose choices begin with different tokens, and whose source the target can read."""
    models: set[LanguageModel] = {context.model, context.verbalizer}
    kept = []
    for item in items:
        if item.relation != relation.name:
            continue
        firsts = [[model.tokens.answer_token(choice) for choice in item.choices] for model in models]
        why = ""
        if not all(len(set(first)) == len(first) for first in firsts):
            why = "choices begin with the same token"
        elif too_long(context.model, item):
            why = f"the source is longer than the {context.model.most_tokens} tokens that {context.model.name} reads"
        if not why:
            kept.append(item)
        else:
            dropped.setdefault(f"{task.name}/{relation.name}", {})[item.id] = why
    return tuple(kept)


def short_answers(model: LanguageModel, relation: Relation) -> float:
    """Return the share of a relation's answers whose first token has at most two letters.

    First tokens are what is scored: `Pr` of Pretoria may be the beginning of much else.
    """
    first = [model.tokens.decode([model.tokens.answer_token(answer)]).strip() for answer in relation.answers]
    return sum(len(text) <= SHORT for text in first) / len(first)


def _require_folds(context: RunContext, task: Task, relation: Relation, train_items: Iterable[Item]) -> None:
    empty = sorted(set(range(N_FOLDS)) - {item.fold for item in train_items})
    if empty:
        raise LensbenchError(
            f"{task.name}/{relation.name}: fold {empty[0]} holds no subject whose choices begin with different tokens "
            f"of {context.model.name}; add subjects or leave the relation out"
        )
