"""Files of two-hop chains, subject → bridge → answer: "Hopping too late" (CSV), and the files of Patchscopes (TSV)."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lensbench.tasks.facts import BRIDGE_SLOT, OWN, SLOT, SOURCE_SLOT, Hops, Site
from lensbench.tasks.files import File, Problems
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording, one_a_subject, why_not
from lensbench.tasks.formats.sources import Row, Source, open_file, read_csv
from lensbench.tasks.formats.texts import Slugs, after_words, place_subject, said, slug, words
from lensbench.tasks.names import name_key

_PHRASINGS = 4


@dataclass(frozen=True)
class Hop:
    """One relation of a chain.

    Attributes:
        name: such as `performer`.
        template: a phrase with {} ("the performer of {}"), or the beginning of a sentence ("{} was written by").
    """

    name: str
    template: str

    @property
    def is_phrase(self) -> bool:
        """Whether the template names the answer, so that "is" follows."""
        return self.template.endswith("{}")

    def asks(self, what: str) -> str:
        """A text whose next word is the answer."""
        return self.template.replace("{}", what) + (" is" if self.is_phrase else "")


@dataclass(frozen=True)
class Chain:
    """One row: the two hops, the aliases of bridge and answer, and the file's own prompt, if it has one."""

    line: int
    subject: str
    bridge: str
    answer: str
    hops: tuple[Hop, Hop]
    bridge_aliases: tuple[str, ...] = ()
    answer_aliases: tuple[str, ...] = ()
    popularity: float | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Names of the two hops."""
        return self.hops[0].name, self.hops[1].name


def draft_chains(chains: list[Chain], name: str, summary: str, file: File) -> Draft:
    """Make a draft of chains; see `_relations_of`."""
    left_out: Counter[str] = Counter()
    rows, wordings = _relations_of(chains, left_out)
    return Draft(slug(name), summary, file.content, rows, wordings, left_out)


def _relations_of(chains: list[Chain], left_out: Counter[str]) -> tuple[tuple[SourceRow, ...], dict[str, Wording]]:
    """Rows and wordings: a relation for each pair of hops and each first hop, or one of all chains.

    Pairs of hops that cannot be cross-fitted are left out, unless this leaves nothing: then all chains are one
    relation, `two_hop`, without single hops.
    """
    by_kind: dict[tuple[str, str], list[Chain]] = defaultdict(list)
    for chain in chains:
        by_kind[chain.kind].append(chain)
    called = Slugs()
    slugs = {name: called(name) for kind in by_kind for name in kind}
    names = {kind: f"{slugs[kind[0]]}_then_{slugs[kind[1]]}" for kind in by_kind}
    large = {kind: group for kind, group in by_kind.items() if not why_not(_chain_rows(group, names[kind]))}
    if not large:
        return _as_one([chain for group in by_kind.values() for chain in group])
    rows: list[SourceRow] = []
    wordings: dict[str, Wording] = {}
    small = sum(len(group) for kind, group in by_kind.items() if kind not in large)
    left_out["of pairs of relations with too few subjects"] = small
    for first in dict.fromkeys(slugs[kind[0]] for kind in large):
        kinds = [kind for kind in large if slugs[kind[0]] == first]
        own = [chain for kind in kinds for chain in large[kind]]
        wordings[first] = _first_hop(own)
        wordings |= {names[kind]: _both_hops(large[kind][0], first) for kind in kinds}
        bridges, hop_rows = _bridges(own, first)
        rows += hop_rows
        for chain in own:
            bridge = bridges[name_key(chain.subject)]
            if name_key(chain.bridge) == name_key(bridge):
                rows.append(replace(_chain_row(chain, names[chain.kind]), bridge=bridge))
            else:
                left_out["another bridge for a subject"] += 1
    return tuple(rows), wordings


def _chain_row(chain: Chain, relation: str) -> SourceRow:
    return SourceRow(
        relation,
        chain.subject,
        chain.answer,
        chain.line,
        aliases=chain.answer_aliases,
        bridge=chain.bridge,
        popularity=chain.popularity,
    )


def _chain_rows(chains: Iterable[Chain], relation: str) -> list[SourceRow]:
    return one_a_subject((_chain_row(chain, relation) for chain in chains), Counter())


def _bridges(chains: Iterable[Chain], first: str) -> tuple[dict[str, str], list[SourceRow]]:
    """For each subject the bridge, in the one spelling that its relation uses, and the facts of the first hop."""
    spelling: dict[str, str] = {}
    bridges: dict[str, str] = {}
    rows = []
    for chain in chains:
        if name_key(chain.subject) in bridges:
            continue
        bridge = spelling.setdefault(name_key(chain.bridge), chain.bridge)
        bridges[name_key(chain.subject)] = bridge
        rows.append(SourceRow(first, chain.subject, bridge, chain.line, aliases=chain.bridge_aliases))
    return bridges, rows


def _first_hop(chains: Iterable[Chain]) -> Wording:
    """The bridge is read where the first hop of the chains' prompts ends."""
    chains = list(chains)
    hop = chains[0].hops[0]
    ends = list(dict.fromkeys(_prompt(chain)[0] for chain in chains))[:_PHRASINGS]
    return _wording(f"subject → {hop.name}", hop.asks(SLOT), "t1", ends)


def _both_hops(chain: Chain, first: str) -> Wording:
    """The answer is read where the chain's prompt ends."""
    one, two = chain.hops
    text = _prompt(chain)[1]
    second = two.asks(BRIDGE_SLOT)
    wording = _wording(f"subject → {one.name} → {two.name}", text, "t2", [text])
    return replace(wording, hops=Hops(first, (f"As far as is known, {second}", f"Anyone can look up that {second}")))


def _wording(summary: str, text: str, site: Site, ends: list[str]) -> Wording:
    """The texts of a relation that `text`, in the file's words, asks for; the sources are the file's too."""
    capital = text[:1].upper() + text[1:]
    sources = {f"train{i}": said(end) for i, end in enumerate(ends)} | {f"test{i}": end for i, end in enumerate(ends)}
    return Wording(
        summary=summary,
        inspection=(capital if after_words(text) == text else after_words(text),),
        questions=(f"Complete the sentence. {capital}", f"If asked, one would say that {text}"),
        sources={site: sources},
        knowledge=(f"As far as is known, {text}", f"Anyone can look up that {text}"),
    )


def _prompt(chain: Chain) -> tuple[str, str]:
    """The prompt up to the end of its first hop, and all of it."""
    one, two = chain.hops
    nested = one.template.replace("{}", SLOT)
    text = two.asks(nested)
    return after_words(text[: text.index(nested) + len(nested)]), text


def _as_one(chains: list[Chain]) -> tuple[tuple[SourceRow, ...], dict[str, Wording]]:
    rows = [replace(_chain_row(chain, "two_hop"), texts={"t2": _prompt(chain)[1]}) for chain in chains]
    wording = Wording(
        summary="subject → bridge → answer, of several kinds",
        inspection=(f"What one hears in the end about {SLOT} is",),
        questions=(f"Question: Two steps from {SLOT}, what does one find? Answer:",),
        sources={"t2": {OWN: SOURCE_SLOT}},
    )
    return tuple(rows), {"two_hop": wording}


_HOPPING_COLUMNS = ("e1_label", "r1_type", "e2_label", "r2_type", "e3_label")


def read_hopping(source: Source, problems: Problems) -> Draft:
    """Read chains of two hops; the templates of the file become prompts, with ours where it has none."""
    file = open_file(source, problems, "a CSV file of chains")
    table = read_csv(file, ",", _HOPPING_COLUMNS)
    chains = [
        Chain(
            line=row.line,
            subject=row.name("e1_label"),
            bridge=row.name("e2_label"),
            answer=row.name("e3_label"),
            hops=(_hop(row, "r1"), _hop(row, "r2")),
            bridge_aliases=row.names("e2_aliases"),
            answer_aliases=row.names("e3_aliases"),
            popularity=row.number("e3_popularity"),
        )
        for row in table
    ]
    if not table and not problems.found:
        file.problem(1, "no rows", "one chain a row", "give a file with rows")
    problems.stop_if_any()
    summary = "Chains of two hops: the bridge at the end of the first hop, the answer at the end of the query."
    return draft_chains(chains, f"hopping {source.path.stem}", summary, file)


def _hop(row: Row, key: str) -> Hop:
    name, template = row.text(f"{key}_type"), row.cells.get(f"{key}_template")
    if not isinstance(template, str) or not template.strip():
        return Hop(name, f"the {words(name)} of {{}}")
    if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        row.problem(f"{key}_template {template!r}", "exactly one {} and no other brace", "mend it")
    return Hop(name, template.strip())


_SNIPPET_COLUMNS = ("subject", "object", "prompt_target", "prompt_source")
_CHAIN = ("hop1_product", "hop2_company", "hop3_ceo")
_CHAIN_HOPS = (Hop("company", "the company that makes {}"), Hop("chief_executive", "the chief executive of {}"))


def read_patchscopes(source: Source, problems: Problems) -> Draft:
    """Read snippets that end at a subject, and the prompt that asks. Positions are found anew, by the subject."""
    file = open_file(source, problems, "a TSV file of Patchscopes")
    if _CHAIN[0] in file.lines[0].rstrip("\r").split("\t"):
        return _read_chief_executives(source, file, problems)
    name = slug(source.path.stem)
    table = read_csv(file, "\t", _SNIPPET_COLUMNS)
    rows = []
    for row in table:
        subject, answer = row.name("subject"), row.name("object")
        placed = place_subject(str(row.cells["prompt_source"]), subject)
        rows.append(SourceRow(name, subject, answer, row.line, texts={"subject": placed.text}, rank=placed.rank))
    inspection = tuple(dict.fromkeys(row.prompt("prompt_target") for row in table))
    if not table and not problems.found:
        file.problem(1, "no rows", "one snippet a row", "give a file with rows")
    wording = Wording(
        summary=f"subject → {name.replace('_', ' ')}",
        inspection=inspection,
        questions=tuple(form for asked in inspection for form in (f"{asked} is", f"Complete the sentence. {asked} is")),
        sources={"subject": {OWN: SOURCE_SLOT}},
    )
    summary = f"Snippets of Patchscopes' attribute extraction that end at a subject: {name.replace('_', ' ')}."
    return Draft(slug(f"patchscopes {source.path.stem}"), summary, file.content, tuple(rows), {name: wording})


def _read_chief_executives(source: Source, file: File, problems: Problems) -> Draft:
    table = read_csv(file, "\t", _CHAIN)
    chains = [
        Chain(row.line, row.name(_CHAIN[0]), row.name(_CHAIN[1]), row.name(_CHAIN[2]), _CHAIN_HOPS) for row in table
    ]
    problems.stop_if_any()
    summary = "Patchscopes' chains: product → company → chief executive."
    return draft_chains(chains, f"patchscopes {source.path.stem}", summary, file)
