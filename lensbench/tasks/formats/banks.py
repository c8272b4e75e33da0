"""Banks of workspace-bench: texts that lead a model to something which they do not say."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lensbench.tasks.facts import OWN, SLOT, SOURCE_SLOT
from lensbench.tasks.files import Problems
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording
from lensbench.tasks.formats.sources import Row, Source, elements, open_file, read_object
from lensbench.tasks.formats.texts import slug, words

_IN_MIND = f"What one has in mind on hearing {SLOT} is"


def read_workspace(source: Source, problems: Problems) -> Draft:
    """Read a bank of workspace-bench: what a text leads the model to think of, and does not say, at its last token.

    The text is its own subject: a rival that is asked about the subject by name reads all of it.
    """
    file = open_file(source, problems, "a bank of workspace-bench (JSON)")
    bank = read_object(file, problems)
    if not isinstance(bank.get("items"), list) or not isinstance(bank.get("family"), str):
        file.problem(1, "no 'family' and list of 'items'", "a bank as it is published", "give another file")
        problems.stop_if_any()
    name, rows, left_out = slug(str(bank.get("family"))), [], Counter[str]()
    (items,) = (found for found in elements(file.text) if found.key == "items")
    for line, _, _, cells in elements(file.text, items.at):
        if not isinstance(cells, dict):
            file.problem(line, f"a JSON {type(cells).__name__}", "an item", "write the item so")
            continue
        row, units, kind = Row(file, line, cells), _units(cells), cells.get("readout")
        if not isinstance(kind, dict) or kind.get("kind") != "final_prompt_token" or kind.get("offsets") != [-1]:
            left_out["read elsewhere than at the last token"] += 1
        elif cells.get("eval_render") != "plain":
            left_out["put in a chat"] += 1
        else:
            head: dict[str, Any] = next((one for one in units if one.get("headline")), {})
            thought = row.names("intermediates") or Row(file, line, head).names("match")
            if not thought:
                row.problem("no 'intermediates' and no 'match' of its headline unit", "a list of texts", "add one")
                continue
            prompt, others = row.name("prompt"), thought[1:]
            rows.append(SourceRow(name, prompt, thought[0], line, aliases=others, texts={"answer": SLOT}))
    if not rows and not problems.found:
        told = ", ".join(f"{count} are {what}" for what, count in left_out.items())
        file.problem(
            1, f"no item that can be read ({told or 'there is none'})", "plain texts read at their end", "give another"
        )
    problems.stop_if_any()
    wording = Wording(
        summary=f"text → what it leads to ({words(name)})",
        inspection=(_IN_MIND,),
        questions=(f"Question: What does one think of when one reads {SLOT}? Answer:",),
        sources={"answer": {OWN: SOURCE_SLOT}},
    )
    summary = f"The bank {bank.get('family')} of workspace-bench: what a text leads to, and does not say."
    return Draft(slug(f"workspace {name}"), summary, file.content, tuple(rows), {name: wording}, left_out)


def _units(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = cells.get("units")
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
