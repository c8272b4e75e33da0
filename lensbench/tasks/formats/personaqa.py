"""Personas of PersonaQA: JSON Lines with one persona a line, or JSON with one prompt, question and target a persona."""

import json
from typing import Any

from lensbench.tasks.facts import SLOT, Site
from lensbench.tasks.formats.building import Draft, SourceRow, Wording
from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.tables import (
    Cells,
    elements,
    name_of,
    open_file,
    parse_json,
    read_json_lines,
    text_of,
)
from lensbench.tasks.formats.texts import (
    SUBJECT_SOURCES,
    default_inspection,
    default_question,
    fill_placeholder,
    is_template,
    slug,
    words,
)
from lensbench.tasks.problems import File, Problems

_ABOUT = ("id", "variant", "name")
_ASKED = ("prompt", "question", "target")


def read_personaqa(source: Source, problems: Problems) -> Draft:
    """Read personas, in either layout."""
    file = open_file(source, problems, "a PersonaQA file (JSON Lines or JSON)")
    draft = _read_document(source, file, problems) if _is_document(file, source) else _read_personas(source, file)
    if not draft.rows and not problems.found:
        file.problem(1, "no personas", "at least one", "give a file with personas")
    return draft


def _is_document(file: File, source: Source) -> bool:
    """Whether the file is one JSON object of objects."""
    try:
        document = json.loads(file.content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return source.path.suffix.lower() == ".json"
    return not isinstance(document, dict) or any(isinstance(value, dict) for value in document.values())


def _read_personas(source: Source, file: File) -> Draft:
    """One persona a line: each attribute is a relation."""
    table = read_json_lines(file)
    attributes = list(dict.fromkeys(key for _, cells in table for key in cells if key not in _ABOUT))
    rows = []
    for line, cells in table:
        name = name_of(file, line, cells, "name")
        for attribute in attributes:
            answer = name_of(file, line, cells, attribute)
            if name is not None and answer is not None:
                rows.append(SourceRow(slug(attribute), name, answer, line))
    variants = sorted({str(cells["variant"]) for _, cells in table if cells.get("variant")})
    wordings = {slug(attribute): _wording(attribute) for attribute in attributes}
    called = slug(" ".join(["personaqa", *(variants or [source.path.stem])]))
    return Draft(called, "What invented persons come from and like.", file.content, tuple(rows), wordings)


def _wording(attribute: str) -> Wording:
    asked = words(attribute)
    answer = {"train0": f"If one asks {SLOT} for a {asked}, the reply is", "test0": f"As to {SLOT}, the {asked} is"}
    return Wording(
        summary=f"person → {asked}",
        inspection=(default_inspection(attribute),),
        questions=(default_question(attribute),),
        sources={"subject": dict(SUBJECT_SOURCES), "answer": answer},
    )


def _read_document(source: Source, file: File, problems: Problems) -> Draft:
    """One object a persona: the file is one relation. The name is what differs between the prompts."""
    document = parse_json(file)
    problems.stop_if_any()
    if not isinstance(document, dict):
        expected = 'an object such as {"0": {"prompt", "question", "target"}}'
        file.problem(1, f"a JSON {type(document).__name__}", expected, "give one, or JSON Lines (.jsonl)")
        problems.stop_if_any()
    read = [_asked(file, line, row) for line, _, _, row in elements(file.content.decode("utf-8-sig"))]
    table = [entry for entry in read if entry is not None]
    before, after = _frame([prompt for _, prompt, _, _ in table])
    relation = slug(source.path.stem)
    rows = []
    for line, prompt, _, target in table:
        name = prompt[len(before) : len(prompt) - len(after)].strip()
        if not name or not before:
            expected = "prompts that are the same but for the name, with words before it"
            file.problem(line, f"prompt {prompt!r:.80}", expected, "mend the prompt")
            continue
        rows.append(SourceRow(relation, name, target, line))
    inspection = tuple(dict.fromkeys(question for _, _, question, _ in table))
    sources: dict[Site, dict[str, str]] = {"subject": dict.fromkeys(("train0", "test0"), f"{before}{SLOT}".lstrip())}
    wording = Wording(
        summary=f"person → {words(relation)}",
        inspection=inspection,
        questions=tuple(f"{question} is" for question in inspection),
        sources=sources,
    )
    summary = f"What PersonaQA asks about persons: {words(relation)}."
    return Draft(slug(f"personaqa {source.path.stem}"), summary, file.content, tuple(rows), {relation: wording})


def _asked(file: File, line: int, row: Any) -> tuple[int, str, str, str] | None:
    """Line, prompt, question with the slot, and target of one entry."""
    if not isinstance(row, dict):
        file.problem(line, f"a JSON {type(row).__name__}", "an object with prompt, question and target", "write it so")
        return None
    cells: Cells = row
    prompt, question, target = (text_of(file, line, cells, key) for key in _ASKED)
    if prompt is None or question is None or target is None:
        return None
    filled = question if SLOT in question else fill_placeholder(question)
    if filled is None or not is_template(filled) or filled.startswith(SLOT):
        file.problem(line, f"question {question!r}", "a placeholder x after other words", "mend the question")
        return None
    return line, prompt, filled, target


def _frame(prompts: list[str]) -> tuple[str, str]:
    """What all prompts begin and end with, up to a space before the name and a mark after it."""
    before = _common(prompts)
    after = _common([prompt[::-1] for prompt in prompts])[::-1]
    while before and not before[-1].isspace():
        before = before[:-1]
    while after and after[0].isalnum():
        after = after[1:]
    return before, after


def _common(texts: list[str]) -> str:
    """What all texts begin with."""
    # What lies between the first and the last in the alphabet begins like both.
    first, last = min(texts, default=""), max(texts, default="")
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
