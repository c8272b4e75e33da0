"""Attribute extraction of Patchscopes (TSV), and its chains of product, company and chief executive."""

from lensbench.tasks.facts import OWN, SLOT, SOURCE_SLOT
from lensbench.tasks.formats.building import Draft, SourceRow, Wording
from lensbench.tasks.formats.chains import Chain, Hop, draft_chains
from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.tables import Cells, name_of, open_file, read_csv, text_of
from lensbench.tasks.formats.texts import fill_placeholder, is_template, place_subject, slug
from lensbench.tasks.problems import File, Problems

_NEEDED = ("subject", "object", "prompt_target", "prompt_source")
_CHAIN = ("hop1_product", "hop2_company", "hop3_ceo")
_HOPS = (Hop("company", "the company that makes {}"), Hop("chief_executive", "the chief executive of {}"))


def read_patchscopes(source: Source, problems: Problems) -> Draft:
    """Read snippets that end at a subject, and the prompt that asks. Positions are found anew, by the subject."""
    file = open_file(source, problems, "a TSV file of Patchscopes")
    if _CHAIN[0] in file.lines[0].rstrip("\r").split("\t"):
        return _read_chains(source, file)
    name = slug(source.path.stem)
    table = read_csv(file, "\t", _NEEDED)
    rows = tuple(row for line, cells in table if (row := _row(file, line, cells, name)) is not None)
    prompts = dict.fromkeys(_inspection(file, line, cells) for line, cells in table)
    inspection = tuple(prompt for prompt in prompts if prompt)
    if not table and not problems.found:
        file.problem(1, "no rows", "one snippet a row", "give a file with rows")
    wording = Wording(
        summary=f"subject → {name.replace('_', ' ')}",
        inspection=inspection,
        questions=tuple(form for asked in inspection for form in (f"{asked} is", f"Complete the sentence. {asked} is")),
        sources={"subject": {OWN: SOURCE_SLOT}},
    )
    summary = f"Snippets of Patchscopes' attribute extraction that end at a subject: {name.replace('_', ' ')}."
    return Draft(slug(f"patchscopes {source.path.stem}"), summary, file.content, rows, {name: wording})


def _row(file: File, line: int, cells: Cells, name: str) -> SourceRow | None:
    subject, answer = (name_of(file, line, cells, key) for key in ("subject", "object"))
    if subject is None or answer is None:
        return None
    placed = place_subject(str(cells["prompt_source"]), subject)
    return SourceRow(name, subject, answer, line, texts={"subject": placed.text}, rank=placed.rank)


def _inspection(file: File, line: int, cells: Cells) -> str | None:
    """The prompt with the slot in the place of its placeholder, the last x."""
    text = text_of(file, line, cells, "prompt_target")
    if text is None:
        return None
    filled = fill_placeholder(text)
    if filled is None or not is_template(filled) or filled.startswith(SLOT):
        file.problem(line, f"prompt_target {text!r}", "a placeholder x after other words", "mend the prompt")
        return None
    return filled


def _read_chains(source: Source, file: File) -> Draft:
    table = read_csv(file, "\t", _CHAIN)
    chains = []
    for line, cells in table:
        product, company, chief = (name_of(file, line, cells, key) for key in _CHAIN)
        if product is not None and company is not None and chief is not None:
            chains.append(Chain(line, product, company, chief, _HOPS))
    left_out: dict[str, int] = {}
    rows, wordings = draft_chains(chains, left_out)
    summary = "Patchscopes' chains: product → company → chief executive."
    return Draft(slug(f"patchscopes {source.path.stem}"), summary, file.content, rows, wordings, left_out)
