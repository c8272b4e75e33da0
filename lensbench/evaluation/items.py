"""From tasks to benches: which items suit a model, and where their read sites are, before anything is run."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lensbench.errors import LensbenchError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.next_token import make_prose_bench
from lensbench.inspectors.base import Inspector
from lensbench.models.activations import find_site
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import make_prompt
from lensbench.tasks import N_FOLDS, Item, Relation, Site, Task

Dropped = dict[str, dict[str, str]]
SHORT = 2
"""A first token of no more letters says little of the answer."""


def make_benches(context: RunContext, task: Task, site: Site, dropped: Dropped) -> list[Bench]:
    """Make a bench for each relation of a task at a site; nothing is captured yet.

    Items whose choices begin with the same token are dropped, for all methods alike, and noted in `dropped`:
    task/relation -> item -> why.

    Raises:
        LensbenchError: a site that the tokenizer cannot find, a fold left empty, or nothing left at all.
    """
    test = task.items(site, "test", context.limit, context.seed)
    train = task.items(site, "train")
    benches: list[Bench] = []
    for relation in task.relations_at(site).values():
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
            f"task {task.name} has no item left for {context.model.name} at {site}: choices of a set begin with the "
            "same token; give other answers, or another model"
        )
    return benches


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
    """Keep the relation's items whose choices begin with different tokens under target and verbalizer."""
    models: set[LanguageModel] = {context.model, context.verbalizer}
    kept = []
    for item in items:
        if item.relation != relation.name:
            continue
        firsts = [[model.tokens.answer_token(choice) for choice in item.choices] for model in models]
        if all(len(set(first)) == len(first) for first in firsts):
            kept.append(item)
        else:
            reasons = dropped.setdefault(f"{task.name}/{relation.name}", {})
            reasons[item.id] = "choices begin with the same token"
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
