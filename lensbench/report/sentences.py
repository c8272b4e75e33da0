"""The result of a run in words: one sentence for each task and site, for the terminal and the page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lensbench.report.wording import number, readable
from lensbench.results.records import ALL, CORRECTED
from lensbench.results.summary import accuracy_column
from lensbench.results.used import MOVES, NO_CEILING, NO_EFFECT, OPPOSITE, READABLE
from lensbench.results.verdicts import ACTIVATION, NO_VERDICT, USED, VERDICTS

BASELINES_IN_WORDS: Mapping[str, str] = {
    "question_only": "the same prompt with nothing patched",
    "mean": "one mean activation for all items",
    "shuffled": "the activation of another subject",
    "gaussian": "noise shaped like activations",
    "choices_only": "the choice set alone",
    "majority": "one constant answer",
    "embedding": "the embedding of the token alone",
    "input_only": "the verbalizer that is given the name in text",
    "inversion": "the text decoded from the activation",
    "asked_in_text": "the target itself when asked in text",
    "input_classifier": "a classifier of the spelling",
    "random_model": "the same method on random weights",
    "verbalizer_probe": "the same method on the verbalizer",
    "unplanted": "the same method on the model without the fact",
    "twin": "the same method on a model that was told other facts",
    "reference_reader": "a reader that lacks the fact",
    "learned_constant": "what the training has it say of anything",
    "full_context": "a reader of the whole source",
    "self_report": "the target's own answer to the question",
}
"""A baseline as the subject of a sentence; others go by their names."""
UNUSED_IN_WORDS: Mapping[str, str] = {
    READABLE: "putting it in from another item has less than a tenth of the whole activation's effect on the target",
    NO_EFFECT: "what it reads, put in from another item, has less than a tenth of the whole activation's effect",
    MOVES: "its direction moves the target's answer, but is not shown to be read there",
    OPPOSITE: "what it reads, put in from another item, moves the target's answer the other way",
    NO_CEILING: "another item's whole activation, put in there, is not shown to move the target's answer either",
}
"""What is said where a direction is not seen to be used."""
BEATS_TEXT = "beats_text"
_DOES = {"beaten by ": "does better", "within ": "does as well"}
"""How the verdicts begin that name a baseline, and what is said of it."""


@dataclass(frozen=True)
class ResultSentence:
    """What came of a task at a site.

    Attributes:
        task: name.
        relation: the one it is about, or `all`.
        site: where was read.
        sentence: the best method, and the answer to each question that was asked.
        others: the other methods at their best layers.
        verdict: of the question that decides, in short; empty where none was asked.
        holds: whether every question that was asked is answered in the method's favour.
    """

    task: str
    relation: str
    site: str
    sentence: str
    others: str
    verdict: str
    holds: bool


def result_sentences(
    best: pd.DataFrame, info: Mapping[str, Any], relations: Mapping[tuple[str, str], str]
) -> Iterator[ResultSentence]:
    """Yield a sentence for every task and site, on the task's totals or on its only relation.

    Args:
        best: as `best_layers` gives it.
        info: the run's `run.json`.
        relations: (task, relation) -> what leads to what, such as "country → capital".
    """
    accuracy = accuracy_column(str(info.get("setting", {}).get("score", CORRECTED)))
    for (task, site), rows in best.groupby(["task", "site"], observed=True, sort=True):
        here = headline(rows).sort_values(accuracy, ascending=False, kind="stable")
        here["accuracy_corrected"] = here[accuracy]  # what is told is the score that decides
        first, *others = here.to_dict("records")
        question = _deciding(first)
        verdict = str(first[f"{question}_verdict"]) if question else ""
        yield ResultSentence(
            str(task), str(first["relation"]), str(site), _sentence(first, info, relations),
            ", ".join(f"{readable(row['inspector'])} {_score(row)}" for row in others),
            readable(verdict) or "no baseline", bool(question) and verdict == VERDICTS.get(question, ""),
        )  # fmt: skip


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one task and site that stand for it: the totals, or those of its only relation."""
    relations = set(rows["relation"]) - {ALL}
    wanted: pd.DataFrame = rows[(rows["relation"] == ALL) == (len(relations) != 1)]
    return wanted if len(wanted) else rows


def counted_relations(row: Mapping[Any, Any]) -> str:
    """Return how many relations a total is over, in words; empty for a run folder that does not say so."""
    return "" if pd.isna(row["relations"]) else f"{int(row['relations'])} relations"


def asked(row: Mapping[Any, Any]) -> list[str]:
    """Return the questions that were asked of a method: those with a verdict."""
    return [q for q in VERDICTS if f"{q}_verdict" in row and isinstance(row[f"{q}_verdict"], str)]


def verdict_in_words(row: Mapping[Any, Any], question: str) -> str:
    """Return the verdict at the best layer, and where a claim holds: `uses the activation at 3-15`."""
    verdict, held = readable(str(row[f"{question}_verdict"])), str(row.get(f"{question}_holds") or "")
    if verdict == VERDICTS[question]:
        return f"{verdict} at {_layers(held)}" if held else verdict
    gap = row.get(f"{question}_detectable_gap")
    if verdict == "inconclusive" and gap is not None and not pd.isna(gap):
        verdict += f" (needs a gap of {number(gap)})"
    return f"{verdict}; holds at {_layers(held)}" if held and verdict != NO_VERDICT else verdict


def claim(row: Mapping[Any, Any]) -> str:
    """Return in one short sentence what may be said of a method at one place: no more than its verdicts do.

    Args:
        row: of `best_layers`.
    """
    method, questions = readable(str(row["inspector"])), asked(row)
    if ACTIVATION not in questions:
        said = f"whether {method} uses the activation was not asked"
    elif held := str(row.get(f"{ACTIVATION}_holds") or ""):
        said = f"{method} uses the activation at {_named(held)}"
    else:
        said = _short_answer(row, ACTIVATION, f"{method} uses the activation")
    if BEATS_TEXT in questions:
        held = str(row.get(f"{BEATS_TEXT}_holds") or "")
        said += f", and beats the text baselines at {_named(held)}" if held else ""
        said += "" if held else f"; at its best layer, {_short_answer(row, BEATS_TEXT, 'it beats {}')}"
    return f"{said[:1].upper()}{said[1:]}."


def _short_answer(row: Mapping[Any, Any], question: str, claimed: str) -> str:
    """The answer to a question whose claim does not hold, without numbers."""
    verdict, name = str(row[f"{question}_verdict"]), str(row.get(f"{question}_baseline") or "")
    reader = "model" if row["model"] == row["verbalizer"] else "verbalizer"
    who = {**BASELINES_IN_WORDS, "input_only": f"the {reader} given only the name"}
    for start, words in _DOES.items():
        if verdict.startswith(start):
            other = verdict.removeprefix("beaten by ").split(" of ")[-1]
            return f"{who.get(other, readable(other))} {words}"
    if verdict == "inconclusive":
        return f"{row['subjects']} subjects do not tell whether {claimed.format(who.get(name, readable(name)))}"
    return readable(verdict)


def _named(held: str) -> str:
    """Layers as they stand in a sentence."""
    return f"layer{'s' if set(held) & set('-,') else ''} {held}"


def _layers(held: str) -> str:
    """Layers as they are told; a claim at layer 0 is one about the identity of the token."""
    return f"{held}; 0 is token identity" if held.split(",")[0].split("-")[0] == "0" else held


def _score(row: Mapping[Any, Any]) -> str:
    return number(row["accuracy_corrected"]) + ("" if pd.isna(row["layer"]) else f" at layer {row['layer']}")


def _deciding(row: Mapping[Any, Any]) -> str:
    """The first question that is not answered in the method's favour, or else the last one asked."""
    questions = asked(row)
    return next((q for q in questions if row[f"{q}_verdict"] != VERDICTS[q]), questions[-1] if questions else "")


def _sentence(row: Mapping[Any, Any], info: Mapping[str, Any], relations: Mapping[tuple[str, str], str]) -> str:
    task, relation, method = str(row["task"]), str(row["relation"]), readable(str(row["inspector"]))
    prose = task in info.get("prose", ())
    what = readable(task) if relation == ALL else relations.get((task, relation), readable(relation))
    read = f"says the next token as the model does ({what})" if prose else f"reads {what}"
    place = "" if pd.isna(row["layer"]) else f" best at layer {row['layer']}"
    score = f"{number(row['accuracy_corrected'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    if relation == ALL:
        counted = counted_relations(row)
        score += ", where 0 is chance and 1 perfect" + (f", mean of {counted}" if counted else "")
    elif row["chance"] > 0:
        score += f", chance {number(row['chance'])}"
    answers = [_answer(row, question) for question in asked(row)]
    told = "; ".join(answers) or "no baseline was run, so nothing is said of where the score comes from"
    return f"{method[:1].upper()}{method[1:]} {read}{place} ({score}): {told}."


def _answer(row: Mapping[Any, Any], question: str) -> str:
    """The answer to one question as a part of a sentence."""
    verdict, name = str(row[f"{question}_verdict"]), str(row.get(f"{question}_baseline") or "")
    who = BASELINES_IN_WORDS.get(name, readable(name))
    theirs = "" if not name else f" ({number(row[f'{question}_baseline_accuracy'])})"
    held = str(row.get(f"{question}_holds") or "")
    where = f" (layers {_layers(held)})" if held else ""
    if verdict == VERDICTS[question]:
        return {
            "uses_activation": f"it uses the activation{where}",
            "beats_text": f"it beats {who}{theirs}{where}",
            "target_specific": f"what it reads is the target's own{where}",
            USED: f"the target uses what it reads{where}",
        }[question]
    for start, words in _DOES.items():
        if verdict.startswith(start):
            other = verdict.split(" of ")[-1].removeprefix("beaten by ")
            told = theirs if other == name else ""
            return f"{BASELINES_IN_WORDS.get(other, readable(other))} {words}{told}"
    if verdict == "inconclusive":
        what = {
            "uses_activation": "it uses the activation", "beats_text": f"it beats {who}{theirs}",
            "target_specific": "it reads what is the target's own", USED: "the target uses what it reads",
        }[question]  # fmt: skip
        elsewhere = f", but it does{where}" if held else ""
        return f"{row['subjects']} subjects do not tell whether {what} there{elsewhere}"
    if verdict in UNUSED_IN_WORDS:
        return UNUSED_IN_WORDS[verdict] + (f", but the target does use it{where}" if held else "")
    if verdict == NO_VERDICT:
        return "no verdict, as the items were chosen by what the model says"
    return readable(verdict)
