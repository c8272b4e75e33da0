"""Baselines of *beats the text* for trained verbalizers: the same question, in the same roles, asked about a text."""

from dataclasses import replace

from lensbench.baselines.common import asked_in_text
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.verbalizers.recipe import as_question
from lensbench.models.chat import Conversation, Text
from lensbench.tasks.turns import ASSISTANT


def full_context(method: CrossFit) -> list[Outcome]:
    """The trained verbalizer and the plain one, shown the whole source before the question."""
    verbalizer, form = method.bench.context.verbalizer, _asked(method, "{source}\n\n")
    reader = method.inspector.reader(verbalizer)
    plain, after = (asked_in_text(method, model, [form]) for model in (verbalizer, reader))
    return [plain, replace(after, scores=replace(after.scores, attempts=("trained",)))]


def self_report(method: CrossFit) -> list[Outcome]:
    """The target itself, asked about the subject by name."""
    return [asked_in_text(method, method.bench.context.model, [_asked(method, "")])]


def _asked(method: CrossFit, before: str) -> Text:
    """Return the relation's question about the subject by name: a user's turn where the method has turns."""
    own = method.inspector.own_prompts(method.bench.forms)
    if not own or not isinstance(own[0].text, Conversation):
        return before + method.bench.question
    return Conversation((("user", before + as_question(method.bench.forms)), (ASSISTANT, "")))
