"""Tasks of two hops: subject → bridge → answer, and the relation that asks for the bridge."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lensbench.tasks.facts import BRIDGE_SLOT, OWN, SLOT, SOURCE_SLOT, Hops, Site, normalise
from lensbench.tasks.formats.building import SourceRow, Wording, one_a_subject, why_not
from lensbench.tasks.formats.texts import after_words, said, slug

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


def draft_chains(chains: Iterable[Chain], left_out: dict[str, int]) -> tuple[tuple[SourceRow, ...], dict[str, Wording]]:
    """Rows and wordings: a relation for each pair of hops and each first hop, or one of all chains.

    Pairs of hops that cannot be cross-fitted are left out, unless this leaves nothing: then all chains are one
    relation, `two_hop`, without single hops.
    """
    by_kind: dict[tuple[str, str], list[Chain]] = defaultdict(list)
    for chain in chains:
        by_kind[chain.kind].append(chain)
    large = {kind: group for kind, group in by_kind.items() if not why_not(_chain_rows(group, _chain_name(kind)))}
    if not large:
        return _as_one([chain for group in by_kind.values() for chain in group])
    rows: list[SourceRow] = []
    wordings: dict[str, Wording] = {}
    small = sum(len(group) for kind, group in by_kind.items() if kind not in large)
    left_out["of pairs of relations with too few subjects"] = small
    for first in dict.fromkeys(slug(kind[0]) for kind in large):
        kinds = [kind for kind in large if slug(kind[0]) == first]
        own = [chain for kind in kinds for chain in large[kind]]
        wordings[first] = _first_hop(own)
        wordings |= {_chain_name(kind): _both_hops(large[kind][0], first) for kind in kinds}
        bridges, hop_rows = _bridges(own, first)
        rows += hop_rows
        for chain in own:
            bridge = bridges[normalise(chain.subject)]
            if normalise(chain.bridge) == normalise(bridge):
                rows.append(replace(_chain_row(chain, _chain_name(chain.kind)), bridge=bridge))
            else:
                left_out["another bridge for a subject"] = left_out.get("another bridge for a subject", 0) + 1
    return tuple(rows), wordings


def _chain_name(kind: tuple[str, str]) -> str:
    return f"{slug(kind[0])}_then_{slug(kind[1])}"


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
        if normalise(chain.subject) in bridges:
            continue
        bridge = spelling.setdefault(normalise(chain.bridge), chain.bridge)
        bridges[normalise(chain.subject)] = bridge
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
