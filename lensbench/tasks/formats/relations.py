"""Files of single relations: "Linearity of relation decoding" (JSON), and personas of PersonaQA (JSON, JSON Lines)."""

import json
from collections.abc import Mapping
from os.path import commonprefix
from typing import Any

from lensbench.tasks.facts import SLOT, Site
from lensbench.tasks.files import File, Problems
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording
from lensbench.tasks.formats.sources import Row, Source, elements, open_file, parse_json, read_json_lines, read_object
from lensbench.tasks.formats.texts import (
    SUBJECT_SOURCES,
    Slugs,
    after_words,
    default_inspection,
    default_question,
    is_template,
    mend,
    slug,
    words,
)

_TEMPLATES = ("prompt_templates", "prompt_templates_zs")


def read_lre(source: Source, problems: Problems) -> Draft:
    """Read a relation: its templates are texts that end where the answer is asked, and questions."""
    file = open_file(source, problems, "a relation's JSON file")
    document = parse_json(file)
    problems.stop_if_any()
    if not isinstance(document, dict) or not isinstance(document.get("samples"), list):
        do = "give a relation of the LRE data"
        file.problem(1, "no list of 'samples'", "an object with name, prompt_templates and samples", do)
        problems.stop_if_any()
    title = document.get("name") if isinstance(document.get("name"), str) else source.path.stem
    name = slug(str(title))
    wording = _lre_wording(file, document, name)
    rows = _samples(file, name)
    summary = f"The relation {title!r} of the LRE data: {wording.summary}."
    return Draft(slug(f"lre {source.path.stem}"), summary, file.content, rows, {name: wording})


def _lre_wording(file: File, document: Mapping[str, Any], name: str) -> Wording:
    prompts, questions = (_templates(file, document, key) for key in _TEMPLATES)
    properties = document.get("properties")
    known = properties if isinstance(properties, dict) else {}
    summary = f"{known.get('domain_name', 'subject')} → {known.get('range_name', 'object')}"
    return template_wording(summary, name, prompts, questions)


def template_wording(summary: str, name: str, prompts: tuple[str, ...], questions: tuple[str, ...]) -> Wording:
    """Word a relation by its templates: half of those that end where the answer is asked train, the others test.

    Args:
        summary: what leads to what.
        name: the relation's, for prompts of ours where there are no templates.
        prompts: texts that end where the answer is asked.
        questions: texts that ask for it.
    """
    asked = prompts or questions
    sources: dict[Site, dict[str, str]] = {"subject": dict(SUBJECT_SOURCES)}
    if asked:
        n_train = (len(asked) + 1) // 2
        # One template serves as both.
        train, test = asked[:n_train], asked[n_train:] or asked
        sources["answer"] = {f"train{i}": text for i, text in enumerate(train)}
        sources["answer"] |= {f"test{i}": text for i, text in enumerate(test)}
    candidates = sorted([*questions, *prompts], key=_awkward)
    inspection = after_words(candidates[0]) if candidates else default_inspection(name)
    return Wording(
        summary=summary,
        inspection=(inspection,),
        questions=questions or prompts or (default_question(name),),
        sources=sources,
    )


def _awkward(template: str) -> int:
    """Rank a template as an inspection prompt, whose slot must be a token of its own after other words: 0 is best."""
    before, _, after = template.partition(SLOT)
    return 2 * (not before.strip()) + (before[-1:] != " " or after[:1] not in ("", " "))


def _templates(file: File, document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    given = document.get(key)
    line = next((i for i, text in enumerate(file.lines, 1) if f'"{key}"' in text), 1)
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        file.problem(line, f"{key!r} is {given!r:.60}", "a list of texts with {}", "write it so")
        return ()
    read = [mend(text).replace("{}", SLOT) for text in given]
    for text in (text for text in read if not is_template(text)):
        file.problem(line, f"template {text.replace(SLOT, '{}')!r}", "exactly one {} and no other brace", "mend it")
    return tuple(dict.fromkeys(read))


def _samples(file: File, name: str) -> tuple[SourceRow, ...]:
    samples = [found for found in elements(file.text) if found.key == "samples"][-1]
    rows = []
    for line, _, _, sample in elements(file.text, samples.at):
        if not isinstance(sample, dict):
            file.problem(line, f"a JSON {type(sample).__name__}", "a subject and an object", "write the sample so")
            continue
        row = Row(file, line, sample)
        rows.append(SourceRow(name, row.name("subject"), row.name("object"), line))
    if not samples.value:
        file.problem(samples.line, "no samples", "a list of subjects and objects", "add samples")
    return tuple(rows)


_ABOUT = ("id", "variant", "name")


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
        document = json.loads(file.text)
    except (ValueError, RecursionError):
        return source.path.suffix.lower() == ".json"
    return not isinstance(document, dict) or any(isinstance(value, dict) for value in document.values())


def _read_personas(source: Source, file: File) -> Draft:
    """One persona a line: each attribute is a relation."""
    table = read_json_lines(file)
    attributes = list(dict.fromkeys(key for row in table for key in row.cells if key not in _ABOUT))
    rows = []
    called = Slugs()
    names = {attribute: called(attribute) for attribute in attributes}
    for row in table:
        name = row.name("name")
        rows += [SourceRow(names[attribute], name, row.name(attribute), row.line) for attribute in attributes]
    variants = sorted({str(row.cells["variant"]) for row in table if row.cells.get("variant")})
    wordings = {names[attribute]: _attribute_wording(attribute) for attribute in attributes}
    title = slug(" ".join(["personaqa", *(variants or [source.path.stem])]))
    return Draft(title, "What invented persons come from and like.", file.content, tuple(rows), wordings)


def _attribute_wording(attribute: str) -> Wording:
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
    expected = 'an object such as {"0": {"prompt", "question", "target"}}'
    read_object(file, problems, expected, "give one, or JSON Lines (.jsonl)")
    table = _asked(file)
    problems.stop_if_any()
    before, after = _frame([prompt for _, prompt, _, _ in table])
    relation = slug(source.path.stem)
    rows = []
    for line, prompt, _, target in table:
        name = prompt[len(before) : len(prompt) - len(after)].strip()
        if not name or not before:
            expected = "prompts that are the same but for the name, with words before it"
            file.problem(line, f"prompt {prompt!r:.80}", expected, "mend the prompt")
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


def _asked(file: File) -> list[tuple[int, str, str, str]]:
    """Line, prompt, question with the slot, and target of each entry."""
    entries = []
    for line, _, _, cells in elements(file.text):
        if not isinstance(cells, dict):
            expected = "an object with prompt, question and target"
            file.problem(line, f"a JSON {type(cells).__name__}", expected, "write it so")
            continue
        row = Row(file, line, cells)
        entries.append((line, row.text("prompt"), row.prompt("question"), row.text("target")))
    return entries


def _frame(prompts: list[str]) -> tuple[str, str]:
    """What all prompts begin and end with, up to a space before the name and a mark after it."""
    # Character by character is what is wanted here.
    before = commonprefix(prompts)  # noqa: RUF071
    after = commonprefix([prompt[::-1] for prompt in prompts])[::-1]  # noqa: RUF071
    while before and not before[-1].isspace():
        before = before[:-1]
    while after and after[0].isalnum():
        after = after[1:]
    return before, after
