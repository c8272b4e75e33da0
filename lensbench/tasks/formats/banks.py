"""Banks of workspace-bench: texts that lead a model to something which they do not say."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lensbench.tasks.facts import OWN, SLOT, SOURCE_SLOT, Site
from lensbench.tasks.files import File, Problems
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording
from lensbench.tasks.formats.sources import Row, Source, elements, open_file, read_object
from lensbench.tasks.formats.texts import slug, words
from lensbench.tasks.turns import ASSISTANT, in_plain_words

_CHATS = ("chat", "chat_dm")
_IN_MIND = f"What one has in mind on hearing {SLOT} is"


def read_workspace(source: Source, problems: Problems) -> Draft:
    """Read a bank of workspace-bench: what a text leads the model to think of, and does not say, at its last token.

    Items that the bank puts in a chat are read under the model's chat template. The text is its own subject: a rival
    that is asked about the subject by name reads all of it.
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
        row, chat = Row(file, line, cells), cells.get("eval_render") in _CHATS
        if cells.get("eval_render") not in ("plain", *_CHATS):
            left_out["put in another way than as a plain text or in a chat"] += 1
        elif not _is_read(cells, chat=chat):
            left_out["read elsewhere than at the last token"] += 1
        elif not (thought := row.names("intermediates") or _headline(cells, file, line)):
            row.problem("no 'intermediates' and no 'match' of its headline unit", "a list of texts", "add one")
        else:
            prompt, said = row.name("prompt"), row.name("assistant") if cells.get("assistant") else ""
            turns = (("user", prompt), (ASSISTANT, said)) if chat else ()
            text = in_plain_words(turns).replace(prompt, SLOT, 1) if chat else SLOT
            # What the text wants done with the thought, or how it is put, makes another relation.
            kind = cells.get("polarity") or ("chat" if chat else "")
            relation = slug(f"{name} {kind}".strip())
            texts: dict[Site, str] = {"answer": text}
            rows.append(SourceRow(relation, prompt, thought[0], line, thought[1:], texts, turns=turns))
    if not rows and not problems.found:
        told = ", ".join(f"{count} are {what}" for what, count in left_out.items())
        file.problem(
            1, f"no item that can be read ({told or 'there is none'})", "plain texts read at their end", "give another"
        )
    problems.stop_if_any()
    wordings = {
        relation: Wording(
            summary=f"text → what it leads to ({words(relation)})",
            inspection=(_IN_MIND,),
            questions=(f"Question: What does one think of when one reads {SLOT}? Answer:",),
            sources={"answer": {OWN: SOURCE_SLOT}},
        )
        for relation in dict.fromkeys(row.relation for row in rows)
    }
    summary = f"The bank {bank.get('family')} of workspace-bench: what a text leads to, and does not say."
    return Draft(slug(f"workspace {name}"), summary, file.content, tuple(rows), wordings, left_out)


def _is_read(cells: Mapping[str, Any], *, chat: bool) -> bool:
    """Whether it is read at the last token of the prompt, or of what the assistant has written in a chat.

    `--sites answer/segment:N` shows more of what is written.
    """
    kind = cells.get("readout")
    if not isinstance(kind, dict):
        return False
    if kind.get("kind") == "writing_positions":
        return chat and bool(cells.get("assistant"))
    return kind.get("kind") == "final_prompt_token" and kind.get("offsets") == [-1] and not cells.get("assistant")


def _headline(cells: Mapping[str, Any], file: File, line: int) -> tuple[str, ...]:
    """The spellings of the unit that is the headline."""
    given = cells.get("units")
    units = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    head: dict[str, Any] = next((one for one in units if one.get("headline")), {})
    return Row(file, line, head).names("match")
