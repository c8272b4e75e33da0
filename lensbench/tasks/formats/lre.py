"""Relations of "Linearity of relation decoding" (JSON): templates with {}, and samples of subject and object."""

from collections.abc import Mapping
from typing import Any

from lensbench.tasks.facts import SLOT, Site
from lensbench.tasks.formats.building import Draft, SourceRow, Wording
from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.tables import elements, name_of, open_file, parse_json
from lensbench.tasks.formats.texts import (
    SUBJECT_SOURCES,
    after_words,
    default_inspection,
    default_question,
    is_template,
    mend,
    slug,
)
from lensbench.tasks.problems import File, Problems

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
    wording = _wording(file, document, name)
    rows = _rows(file, name)
    summary = f"The relation {title!r} of the LRE data: {wording.summary}."
    return Draft(slug(f"lre {source.path.stem}"), summary, file.content, rows, {name: wording})


def _wording(file: File, document: Mapping[str, Any], name: str) -> Wording:
    prompts, questions = (_templates(file, document, key) for key in _TEMPLATES)
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
    properties = document.get("properties")
    known = properties if isinstance(properties, dict) else {}
    return Wording(
        summary=f"{known.get('domain_name', 'subject')} → {known.get('range_name', 'object')}",
        inspection=(inspection,),
        questions=questions or prompts or (default_question(name),),
        sources=sources,
    )


def _awkward(template: str) -> int:
    """How ill a template serves as an inspection prompt, whose slot must be a token of its own after other words."""
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


def _rows(file: File, name: str) -> tuple[SourceRow, ...]:
    text = file.content.decode("utf-8-sig")
    samples = [found for found in elements(text) if found.key == "samples"][-1]
    rows = []
    for line, _, _, sample in elements(text, samples.at):
        if not isinstance(sample, dict):
            file.problem(line, f"a JSON {type(sample).__name__}", "a subject and an object", "write the sample so")
            continue
        subject, answer = (name_of(file, line, sample, key) for key in ("subject", "object"))
        if subject is not None and answer is not None:
            rows.append(SourceRow(name, subject, answer, line))
    if not samples.value:
        file.problem(samples.line, "no samples", "a list of subjects and objects", "add samples")
    return tuple(rows)
