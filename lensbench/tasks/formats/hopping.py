"""Chains of "Hopping too late" (CSV): e1 → r1 → e2 → r2 → e3."""

from lensbench.tasks.formats.building import Draft
from lensbench.tasks.formats.chains import Chain, Hop, draft_chains
from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.tables import Cells, name_of, names_of, number_of, open_file, read_csv, text_of
from lensbench.tasks.formats.texts import slug, words
from lensbench.tasks.problems import File, Problems

_NEEDED = ("e1_label", "r1_type", "e2_label", "r2_type", "e3_label")


def read_hopping(source: Source, problems: Problems) -> Draft:
    """Read chains of two hops; the templates of the file become prompts, with ours where it has none."""
    file = open_file(source, problems, "a CSV file of chains")
    table = read_csv(file, ",", _NEEDED)
    chains = [chain for line, cells in table if (chain := _chain(file, line, cells)) is not None]
    if not table and not problems.found:
        file.problem(1, "no rows", "one chain a row", "give a file with rows")
    left_out: dict[str, int] = {}
    rows, wordings = draft_chains(chains, left_out)
    summary = "Chains of two hops: the bridge at the end of the first hop, the answer at the end of the query."
    return Draft(slug(f"hopping {source.path.stem}"), summary, file.content, rows, wordings, left_out)


def _chain(file: File, line: int, cells: Cells) -> Chain | None:
    names = [name_of(file, line, cells, key) for key in ("e1_label", "e2_label", "e3_label")]
    hops = [_hop(file, line, cells, key) for key in ("r1", "r2")]
    aliases = [names_of(file, line, cells, key) for key in ("e2_aliases", "e3_aliases")]
    popularity = number_of(file, line, cells, "e3_popularity")
    (subject, bridge, answer), (one, two), (of_bridge, of_answer) = names, hops, aliases
    if subject is None or bridge is None or answer is None or one is None or two is None:
        return None
    if of_bridge is None or of_answer is None:
        return None
    return Chain(line, subject, bridge, answer, (one, two), of_bridge, of_answer, popularity)


def _hop(file: File, line: int, cells: Cells, key: str) -> Hop | None:
    name = text_of(file, line, cells, f"{key}_type")
    template = cells.get(f"{key}_template")
    if name is None:
        return None
    if not isinstance(template, str) or not template.strip():
        return Hop(name, f"the {words(name)} of {{}}")
    if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        file.problem(line, f"{key}_template {template!r}", "exactly one {} and no other brace", "mend it")
        return None
    return Hop(name, template.strip())
