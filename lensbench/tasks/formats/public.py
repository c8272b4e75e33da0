"""Public sets of facts (CounterFact, known-1000, PopQA, ParaRel, RAVEL), and of chains (MQuAKE, TwoHopFact)."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lensbench.tasks.facts import SLOT
from lensbench.tasks.files import File, Problems
from lensbench.tasks.formats.chains import Chain, Hop, draft_chains
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording
from lensbench.tasks.formats.relations import template_wording
from lensbench.tasks.formats.sources import (
    Row,
    Source,
    elements,
    open_file,
    read_csv,
    read_json_lines,
    read_json_rows,
    read_object,
)
from lensbench.tasks.formats.texts import Slugs, is_template, place_whole, slug, words

# A relation keeps so many templates: methods that learn are shown half of them.
_TEMPLATES = 8


class _Relations:
    """Rows of several relations, and the templates of each, as a file tells them."""

    def __init__(self) -> None:
        self.rows: list[SourceRow] = []
        self._called = Slugs()
        self._templates: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, relation: str, template: str | None, row: SourceRow) -> None:
        """Add a fact of a relation, and a template that asks for it, where there is one."""
        self.rows.append(replace(row, relation=self._called(relation)))
        self.ask(relation, template)

    def ask(self, relation: str, template: str | None) -> None:
        """Add a template of a relation, where there is one."""
        templates = self._templates[self._called(relation)]
        if template and len(templates) < _TEMPLATES:
            templates[template] = None

    def draft(self, source: Source, kind: str, summary: str, file: File, problems: Problems) -> Draft:
        """Return the draft of all that was added."""
        if not self.rows and not problems.found:
            file.problem(1, "no facts", "at least one", f"give a file of {kind}")
        problems.stop_if_any()
        wordings = {
            name: template_wording(f"subject → {words(name)}", name, tuple(self._templates[name]), ())
            for name in dict.fromkeys(row.relation for row in self.rows)
        }
        return Draft(slug(f"{kind} {source.path.stem}"), summary, file.content, tuple(self.rows), wordings)


def read_counterfact(source: Source, problems: Problems) -> Draft:
    """Read CounterFact (the true fact of each edit), or known_1000: facts by relation, with their templates."""
    file = open_file(source, problems, "CounterFact or known_1000 (JSON)")
    found = _Relations()
    for row in read_json_rows(file):
        told = row.cells.get("requested_rewrite", row.cells)
        if not isinstance(told, dict):
            row.problem(f"'requested_rewrite' is a {type(told).__name__}", "an object", "MQuAKE is read by mquake:")
            continue
        true = told.get("target_true")
        edit = Row(file, row.line, {**told, "true": true.get("str") if isinstance(true, dict) else true})
        key, answer = ("prompt", "true") if "target_true" in told else ("template", "attribute")
        fact = SourceRow("", edit.name("subject"), edit.name(answer), row.line)
        found.add(edit.text("relation_id"), _template(edit, edit.text(key)), fact)
    return found.draft(source, "counterfact", "Facts of CounterFact, by relation.", file, problems)


def _template(row: Row, text: str) -> str:
    read = text.replace("{}", SLOT)
    if text and not is_template(read):
        row.problem(f"template {text!r}", "exactly one {} and no other brace", "mend it")
    return read


_POPQA = ("subj", "prop", "obj", "question")


def read_popqa(source: Source, problems: Problems) -> Draft:
    """Read PopQA: one relation for each property, its question as the file puts it."""
    file = open_file(source, problems, "PopQA (TSV)")
    found, asked = _Relations(), defaultdict[str, Counter[str]](Counter)
    called = Slugs()
    for row in read_csv(file, "\t", _POPQA):
        subject, relation = row.name("subj"), row.text("prop")
        fact = SourceRow(
            "",
            subject,
            row.name("obj"),
            row.line,
            aliases=row.names("possible_answers"),
            popularity=row.number("o_pop"),
        )
        found.add(relation, None, fact)
        question = place_whole(row.text("question"), subject)
        asked[called(relation)][question] += is_template(question)
    draft = found.draft(
        source, "popqa", "What PopQA asks about things that are more or less well known.", file, problems
    )
    wordings = {name: _asked_so(wording, name, asked[name]) for name, wording in draft.wordings.items()}
    return replace(draft, wordings=wordings)


def _asked_so(wording: Wording, name: str, questions: Counter[str]) -> Wording:
    """Put the file's most frequent question first; the answer is read at the end of two texts of ours."""
    answer = {
        "train0": f"It is on record that the {words(name)} of {SLOT} is",
        "test0": f"As to {SLOT}, the {words(name)} is",
    }
    ((question, count),) = questions.most_common(1)
    first = (f"Question: {question} Answer:",) if count else ()
    return replace(wording, questions=(*first, *wording.questions), sources={**wording.sources, "answer": answer})


def read_pararel(source: Source, problems: Problems) -> Draft:
    """Read a relation of ParaRel (JSON Lines), and its patterns where the option `patterns` names their file."""
    file = open_file(source, problems, "a relation of ParaRel (JSON Lines)")
    found, templates = _Relations(), _patterns(source, problems)
    for row in read_json_lines(file):
        fact = SourceRow("", row.name("sub_label"), row.name("obj_label"), row.line)
        found.add(source.path.stem, None, fact)
    for template in templates:
        found.ask(source.path.stem, template)
    summary = f"The relation {source.path.stem} of ParaRel."
    return found.draft(source, "pararel", summary, file, problems)


def _patterns(source: Source, problems: Problems) -> list[str]:
    """The patterns that end where the object stands: a model that reads from left to right can complete no other."""
    given = source.option("patterns")
    if given is None:
        return []
    file = File(Path(given).expanduser(), problems, "give the path of the relation's patterns")
    problems.stop_if_any()
    texts = [row.text("pattern").replace("[X]", SLOT) for row in read_json_lines(file)]
    ends = [re.sub(r"\s*\[Y\]\W*$", "", text) for text in texts if re.search(r"\[Y\]\W*$", text)]
    return [text for text in ends if is_template(text) and "[Y]" not in text]


_ENTITIES, _PROMPTS = "_entity_attributes", "_attribute_to_prompts"


def read_ravel(source: Source, problems: Problems) -> Draft:
    """Read the entities of RAVEL: one relation for each attribute, with the prompts of the file beside it."""
    file = open_file(source, problems, "RAVEL's entities (ravel_TYPE_entity_attributes.json)")
    entities, found = read_object(file, problems), _Relations()
    for line, _, entity, attributes in elements(file.text) if entities else ():
        if not isinstance(attributes, dict):
            file.problem(
                line, f"{entity!r} is a JSON {type(attributes).__name__}", "an object of attributes", "mend it"
            )
            continue
        row = Row(file, line, {**attributes, "": entity})
        for attribute in attributes:
            found.add(attribute, None, SourceRow("", row.name(""), row.name(attribute), line))
    for attribute, prompts in _ravel_prompts(source, problems).items():
        for prompt in prompts if isinstance(prompts, list) else ():
            if isinstance(prompt, str) and prompt.count("%s") == 1:
                found.ask(attribute, prompt.replace("%s", SLOT).strip())
    return found.draft(source, "ravel", "Attributes of the entities of RAVEL.", file, problems)


def _ravel_prompts(source: Source, problems: Problems) -> Mapping[str, Any]:
    beside = source.path.with_name(source.path.name.replace(_ENTITIES, _PROMPTS))
    if beside == source.path or not beside.is_file():
        return {}
    file = File(beside, problems, "remove it, or give it as it is published")
    problems.stop_if_any()
    return read_object(file, problems)


def read_mquake(source: Source, problems: Problems) -> Draft:
    """Read the chains of MQuAKE that have two hops, as they were before any edit."""
    file = open_file(source, problems, "MQuAKE (JSON)")
    chains, longer = [], 0
    for row in read_json_rows(file):
        original = row.cells.get("orig")
        triples = original.get("triples_labeled") if isinstance(original, dict) else None
        if not isinstance(triples, list) or not all(isinstance(one, list) and len(one) == 3 for one in triples):
            row.problem("no triples", "orig.triples_labeled, a list of [subject, relation, object]", "mend the case")
            continue
        if len(triples) != 2:
            longer += 1
            continue
        (subject, first, bridge), (_, second, answer) = triples
        told = Row(
            file, row.line, {"subject": subject, "first": first, "bridge": bridge, "second": second, "answer": answer}
        )
        hops = [told.text(key) for key in ("first", "second")]
        chains.append(
            Chain(
                row.line, told.name("subject"), told.name("bridge"), told.name("answer"),
                (_hop_of(hops[0]), _hop_of(hops[1])), _aliases(row), row.names("answer_alias"),
            )
        )  # fmt: skip
    return _chains(source, "mquake", file, chains, problems, {"of another number of hops": longer})


def _hop_of(label: str) -> Hop:
    return Hop(label, f"the {label} of {{}}")


def _aliases(row: Row) -> tuple[str, ...]:
    hops = row.cells.get("single_hops")
    first = hops[0] if isinstance(hops, list) and hops else {}
    return Row(row.report, row.line, first).names("answer_alias") if isinstance(first, dict) else ()


_TWO_HOPS = ("e1.value", "e2.value", "e3.value", "r2(e2).prompt", "r2(r1(e1)).prompt")


def read_twohopfact(source: Source, problems: Problems) -> Draft:
    """Read TwoHopFact: the phrases of both hops are found in the prompts of the second hop and of the chain."""
    file = open_file(source, problems, "TwoHopFact (CSV)")
    chains = []
    for row in read_csv(file, ",", _TWO_HOPS):
        subject, bridge, answer = (row.name(f"e{i}.value") for i in (1, 2, 3))
        hops = _phrases(row.text("r2(e2).prompt"), row.text("r2(r1(e1)).prompt"), subject, bridge)
        names = [str(row.cells.get(f"r{i}.category") or f"hop {i}") for i in (1, 2)]
        if hops is None:
            expected = "the prompt of the second hop around a phrase with the subject"
            row.problem(f"prompt {row.cells['r2(r1(e1)).prompt']!r:.80}", expected, "mend it")
            continue
        chains.append(
            Chain(row.line, subject, bridge, answer, (Hop(names[0], hops[0]), Hop(names[1], hops[1])),
                  row.names("e2.aliases"), row.names("e3.aliases"))
        )  # fmt: skip
    return _chains(source, "twohopfact", file, chains, problems, {})


def _phrases(second: str, whole: str, subject: str, bridge: str) -> tuple[str, str] | None:
    """The phrase of the first hop, which stands where the bridge stands in the second, and that of the second."""
    before, slot, after = place_whole(second, bridge).partition(SLOT)
    inner = whole[len(before) : len(whole) - len(after)]
    first = place_whole(inner, subject)
    if not slot or not whole.startswith(before) or not whole.endswith(after) or SLOT not in first:
        return None
    frame = f"{before[:1].lower()}{before[1:]}{{}}"
    return first.replace(SLOT, "{}"), frame if after.strip() == "is" else f"{frame}{after}"


def _chains(
    source: Source, kind: str, file: File, chains: list[Chain], problems: Problems, left_out: Mapping[str, int]
) -> Draft:
    if not chains and not problems.found:
        file.problem(1, "no chains of two hops", "at least one", f"give a file of {kind}")
    problems.stop_if_any()
    summary = "Chains of two hops: the bridge at the end of the first hop, the answer at the end of the query."
    draft = draft_chains(chains, f"{kind} {source.path.stem}", summary, file)
    return replace(draft, left_out={**draft.left_out, **left_out})
