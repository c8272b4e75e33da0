"""Write task.toml, items.jsonl and shortcuts.toml from prose.toml, subjects.toml and packages. Run by hand.

    python tasks/multi_hop/build.py TOKENIZER.json

The environment is that of tasks/attribute_extraction/build.py, whose functions read the packages here too, so that both
tasks agree on facts. TOKENIZER.json is the tokenizer file of SmolLM2-135M: choices of one relation must begin with
different tokens. subjects.toml says which subjects are asked about; what they lead to is in the packages alone, and a
name that they do not confirm stops the build. The result depends on nothing else: no clock, no network, a fixed seed.
"""

import collections
import importlib.util
import json
import random
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SEED = "multi_hop/1"
MOST = 60  # chains of one relation
POOL = 9  # subjects of one bridge
ELEMENT_POOL = 14  # elements have few bridges
LEAST = 7  # chains of one answer
OUTSIDE = 5  # of them outside any one fold, for a probe to learn from
HOP = "HOP"

# Bridges go by names whose first word tells them apart, which "the" does not; the packages' names are on the right.
STATES = {"America": "the United States", "Britain": "the United Kingdom", "England": "the United Kingdom"}
STATES |= {"Holland": "the Netherlands"}
ALIASES = {
    "America": ("the United States", "United States", "USA"),
    "Britain": ("the United Kingdom", "United Kingdom", "Great Britain", "England"),
    "England": ("the United Kingdom", "United Kingdom", "Britain"),
    "Holland": ("the Netherlands", "Netherlands"),
    "Washington": ("Washington, D.C.",),
}
# Glosses of persons begin with these.
ADJECTIVES = {
    "America": "United States",
    "England": "English",
    "France": "French",
    "Germany": "German",
    "Italy": "Italian",
    "Russia": "Russian",
    "Austria": "Austrian",
    "Holland": "Dutch",
    "Spain": "Spanish",
    "Sweden": "Swedish",
    "Denmark": "Danish",
    "Norway": "Norwegian",
    "Ireland": "Irish",
    "Canada": "Canadian",
    "Mexico": "Mexican",
    "Japan": "Japanese",
    "Australia": "Australian",
}
# Vanadium was found in Mexico first, under another name.
ELEMENTS_DROPPED = {"vanadium"}
FILM_STATES = {"People's Republic of China": "China", "United States": "America", "United Kingdom": "Britain"}
PLACES = {"river", "lake", "island", "archipelago", "range", "mountain_peak", "volcano", "desert", "peninsula", "cape"}
PLACES |= {
    "geographical_area",
    "district",
    "region",
    "state",
    "county",
    "French_region",
    "Italian_region",
    "bay",
    "hill",
}
PLACES |= {"gulf", "Canadian_province", "suspension_bridge", "Australian_state", "forest", "reef", "national_park"}
# One time zone in the whole state, under the name that Americans give it.
ZONES = {
    "America/New_York": "Eastern",
    "America/Chicago": "Central",
    "America/Denver": "Mountain",
    "America/Los_Angeles": "Pacific",
}


def load_sibling() -> ModuleType:
    """The build of attribute_extraction, for its readers of packages."""
    spec = importlib.util.spec_from_file_location("facts", HERE.parent / "attribute_extraction" / "build.py")
    if spec is None or spec.loader is None:
        raise SystemExit("tasks/attribute_extraction/build.py is needed")
    module = importlib.util.module_from_spec(spec)
    sys.modules["facts"] = module
    spec.loader.exec_module(module)
    return module


facts = load_sibling()


@dataclass(frozen=True)
class Kind:
    """One kind of subject: those that may be asked about, by bridge, and how many each bridge has in the source."""

    subjects: dict[str, list[str]]
    everything: collections.Counter[str]


@dataclass(frozen=True)
class Chain:
    subject: str
    bridge: str
    answer: str


# ---------------------------------------------------------------- the second hop


def attributes(countries: list) -> dict[str, dict[str, str]]:
    """Answers of each attribute by bridge."""
    import us

    readers = {
        "capital": facts.country_capital,
        "currency": facts.country_currency,
        "language": facts.country_language,
        "continent": facts.country_continent,
    }
    table = {name: {fact.subject: fact.answer for fact in read(countries)} for name, read in readers.items()}
    for answers in table.values():
        answers |= {bridge: answers[state] for bridge, state in STATES.items() if state in answers}
    table["capital"] |= {fact.subject: fact.answer for fact in facts.state_capital()}
    zones = {state.name: state.time_zones for state in us.states.STATES}
    table["time_zone"] = {name: ZONES[zone[0]] for name, zone in zones.items() if len(zone) == 1 and zone[0] in ZONES}
    return table


# ---------------------------------------------------------------- the first hop


def confirmed(kind: str, wanted: dict[str, list[str]], found: dict[str, set[str]]) -> dict[str, list[str]]:
    """The wanted subjects, all of which the package must have with this bridge."""
    wrong = [f"{name} ({bridge})" for bridge, names in wanted.items() for name in names if bridge not in found[name]]
    if wrong:
        raise SystemExit(f"{kind}: no package says so of {', '.join(wrong)}")
    return wanted


def counted(found: dict[str, set[str]]) -> collections.Counter[str]:
    """How many subjects of the source each bridge has."""
    return collections.Counter(bridge for bridges in found.values() for bridge in bridges)


def read_persons(wanted: dict[str, list[str]], entities: list) -> Kind:
    """Persons whose gloss begins with one nationality, such as "influential German romantic composer"."""
    adjective = re.compile(rf"\b({'|'.join(ADJECTIVES.values())}) (?=[a-z])")
    bridge_of = {word: bridge for bridge, word in ADJECTIVES.items()}
    found = collections.defaultdict(set)
    for name, entity in facts.persons(entities):
        bridges = {bridge_of[word] for word in adjective.findall(entity.gloss[:60])}
        if not re.search(r"born (in|at|of) (?!\d)|emigrat|naturali|citizen|settled|exile", entity.gloss):
            found[name] |= bridges if len(bridges) == 1 else set()
    return Kind(
        confirmed("person", wanted, found), collections.Counter(b for bridges in found.values() for b in bridges)
    )


def read_films(wanted: dict[str, list[str]]) -> Kind:
    found = collections.defaultdict(set)
    for film in facts.read_films():
        if film["country"] and "," not in film["country"]:
            found[film["title"]].add(FILM_STATES.get(film["country"], film["country"]))
    return Kind(confirmed("film", wanted, found), counted(found))


def read_places(wanted: dict[str, list[str]], entities: list) -> Kind:
    """Places whose gloss names the country, or its adjective, or a state of the United States; and no other bridge."""
    import us

    words = {bridge: bridge for bridge in wanted} | {ADJECTIVES[b]: b for b in wanted if b in ADJECTIVES}
    words |= {state.name: "America" for state in us.states.STATES} | {"Greek": "Greece", "Chinese": "China"}
    named = re.compile(rf"\b({'|'.join(sorted(words, key=len, reverse=True))})\b")
    found, every = collections.defaultdict(set), collections.Counter()
    for entity in entities:
        bridges = {words[word] for word in named.findall(entity.gloss.replace("English Channel", ""))}
        if PLACES & set(entity.kinds) and len(bridges) == 1:
            every.update(bridges)
            for name in entity.names:
                found[name] |= bridges
    for names in wanted.values():
        for name in names:
            bare = re.sub(r"^(the island of|the|Mount|Lake) ", "", name)
            found[name] = found[name] | found[bare]
    return Kind(confirmed("place", wanted, found), every)


def read_elements() -> Kind:
    subjects = collections.defaultdict(list)
    for fact in facts.element_discovery():
        if fact.subject not in ELEMENTS_DROPPED:
            subjects[fact.answer].append(fact.subject)
    return Kind(dict(subjects), collections.Counter({bridge: len(names) for bridge, names in subjects.items()}))


def read_cities(wanted: dict, cities: list[dict], countries: list, capitals: set[str]) -> tuple[Kind, Kind]:
    """Cities of the world and of the United States, without capitals of a country or state.

    Of states with several time zones no city is asked for its zone; in the others GeoNames must agree with the state.
    """
    import us

    names = {country.iso: country.name for country in countries} | {"US": "America"}
    world, states = collections.defaultdict(set), collections.defaultdict(set)
    for city in cities:
        if city["name"] in capitals or city["countrycode"] not in names:
            continue
        world[city["name"]].add(names[city["countrycode"]])
        state = us.states.lookup(city["admin1code"]) if city["countrycode"] == "US" else None
        if state and (state.time_zones == [city["timezone"]] or len(state.time_zones) > 1):
            states[city["name"]].add(state.name)
    pairs = (("city", world), ("us_city", states))
    first, second = (Kind(confirmed(kind, wanted[kind], found), counted(found)) for kind, found in pairs)
    return first, second


def read_kinds() -> tuple[dict[str, Kind], dict[str, dict[str, str]]]:
    wanted = tomllib.loads((HERE / "subjects.toml").read_text("utf-8"))
    countries, entities = facts.read_countries(), facts.read_wordnet()
    table = attributes(countries)
    world, states = read_cities(wanted, facts.read_cities(countries), countries, set(table["capital"].values()))
    kinds = {
        "person": read_persons(wanted["person"], entities),
        "city": world,
        "film": read_films(wanted["film"]),
        "element": read_elements(),
        "place": read_places(wanted["place"], entities),
        "us_city": states,
    }
    return kinds, table


# ---------------------------------------------------------------- choosing


def leaks(subject: str, *answers: str) -> bool:
    return any(facts.leaks(facts.Candidate(subject, answer)) for answer in answers)


def spread(pools: dict[str, list[str]], size: int, total: collections.Counter[int]) -> list[tuple[str, str]]:
    """Draw (bridge, subject) pairs, evenly over bridges and folds, the first of each pool where folds allow."""
    left = [(bridge, place, name) for bridge, names in pools.items() for place, name in enumerate(names)]
    taken: list[tuple[str, str]] = []
    bridges: collections.Counter[str] = collections.Counter()
    own: collections.Counter[int] = collections.Counter()
    while left and len(taken) < size:

        def cost(entry: tuple[str, int, str]) -> tuple:
            bridge, place, name = entry
            fold = facts.fold_of(name)
            return bridges[bridge], own[fold], total[fold], place, bridge

        best = min(left, key=cost)
        left.remove(best)
        bridges[best[0]] += 1
        own[facts.fold_of(best[2])] += 1
        total[facts.fold_of(best[2])] += 1
        taken.append((best[0], best[2]))
    return taken


def choose_pool(kind: str, known: Kind, bridges: Iterable[str]) -> dict[str, list[str]]:
    """At most POOL subjects of each bridge, evenly over the folds among the best known."""
    size = ELEMENT_POOL if kind == "element" else POOL
    pool, total = {}, collections.Counter()
    for bridge in bridges:
        names = [name for name in known.subjects[bridge] if not leaks(name, bridge, STATES.get(bridge, bridge))]
        drawn = {name for _, name in spread({bridge: names[: 2 * size]}, size, total)}
        pool[bridge] = [name for name in names if name in drawn]
    return pool


def choose_chains(name: str, bridges: list[str], pool: dict[str, list[str]], answers: dict[str, str]) -> list[Chain]:
    """Classes of nearly one size: none has more than half as many chains again as the smallest."""
    classes: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for bridge in bridges:
        classes[answers[bridge]][bridge] = [s for s in pool[bridge] if not leaks(s, answers[bridge])]
    smallest = min(sum(map(len, pools.values())) for pools in classes.values())
    if smallest < LEAST:
        raise SystemExit(f"{name}: a class of {smallest}; expected {LEAST} or more")
    size = min(MOST // len(classes), smallest * 3 // 2)
    total: collections.Counter[int] = collections.Counter()
    chains = []
    for answer, pools in classes.items():
        chains += [Chain(subject, bridge, answer) for bridge, subject in spread(pools, size, total)]
    return sorted(chains, key=lambda chain: facts.fold_key(chain.subject))


def choose_swaps(name: str, chains: list[Chain]) -> dict[str, str]:
    """For each chain another with another bridge and answer, each of them used about once."""
    rng, used, swaps = random.Random(f"{SEED}/{name}"), collections.Counter(), {}
    for chain in chains:
        others = [other for other in chains if other.bridge != chain.bridge and other.answer != chain.answer]
        other = min(others, key=lambda other: (used[other.subject], rng.random()))
        used[other.subject] += 1
        swaps[chain.subject] = other.subject
    return swaps


def shortcut(known: Kind, answers: dict[str, str]) -> tuple[str, float]:
    """The answer of most subjects in the source before anything was balanced, and its share."""
    counts: collections.Counter[str] = collections.Counter()
    for bridge, n in known.everything.items():
        if bridge in answers:
            counts[answers[bridge]] += n
    answer, n = counts.most_common(1)[0]
    return answer, n / counts.total()


# ---------------------------------------------------------------- writing


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def texts(key: str, values: list[str]) -> list[str]:
    return [f"{key} = [", *(f"    {quote(value)}," for value in values), "]"]


def table_lines(name: str, relation: dict) -> list[str]:
    """A relation as TOML: what it asks, its choices, its hops, and the sources of its one site."""
    lines = ["", f"[relations.{name}]", 'kind = "class"', f"summary = {quote(relation['summary'])}"]
    for key in ("inspection", "questions", "knowledge"):
        lines += texts(key, relation[key])
    lines += [f"choice_sets = [[{', '.join(map(quote, relation['choices']))}]]"]
    if "hops" in relation:
        first, second, correct = relation["hops"]
        lines += ["", f"[relations.{name}.hops]", f"first = {quote(first)}", *texts("second", second)]
        lines += texts("phrases", relation["phrases"])
        lines += ["correct = true"] if correct else []
    lines += ["", f"[relations.{name}.sources.{relation['site']}]"]
    return lines + texts("train", relation["train"]) + texts("test", relation["test"])


def queries(kind: dict, attribute: dict, split: str, to_end: bool) -> list[str]:
    """Text i joins frame i of the attribute and phrase i of the kind; without its tail it ends with the first hop."""
    pairs = zip(attribute[split], kind[split], strict=True)
    return [f"{head} {hop} {tail}" if to_end else f"{head} {hop}" for (head, tail), hop in pairs]


def first_relation(kind: dict, asked: list[dict], choices: list[str]) -> dict:
    """The first hop: its texts are those of the kind's chains in turn, cut where the hop ends."""
    cut = {s: [queries(kind, a, s, to_end=False) for a in asked] for s in ("train", "test")}
    sources = {s: [cut[s][i % len(asked)][i] for i in range(len(kind[s]))] for s in cut}
    keep = {key: kind[key] for key in ("summary", "inspection", "questions", "knowledge")}
    return keep | sources | {"site": "t1", "choices": choices}


def chain_relations(kind: dict, attribute: dict, choices: list[str]) -> tuple[dict, dict]:
    """The chain, read at t2, and its correction, read at t1 by a prompt that carries out the second hop."""
    bridge = "state" if kind["first"].endswith("state") else "country"
    shared = {
        "questions": [text.replace(HOP, hop) for text, hop in zip(attribute["questions"], kind["asked"], strict=True)],
        "knowledge": [text.replace(HOP, hop) for text, hop in zip(attribute["knowledge"], kind["known"], strict=True)],
        "choices": choices,
        "phrases": [*kind["train"], *kind["test"]],
    }
    who = kind["summary"].split(" → ")[0]
    chain = {
        "summary": f"{who} → {bridge} → {attribute['summary']}",
        "inspection": attribute["inspection"],
        "site": "t2",
        "hops": (kind["first"], attribute["second"], False),
    }
    correction = {
        "summary": f"{chain['summary']}, the second hop carried out by the reader",
        "inspection": attribute["carry"],
        "site": "t1",
        "hops": (kind["first"], attribute["second"], True),
    }
    ends = {"t1": False, "t2": True}
    return tuple(
        shared | own | {s: queries(kind, attribute, s, ends[own["site"]]) for s in ("train", "test")}
        for own in (chain, correction)
    )


def fact_row(relation: str, chain: Chain, swap: str | None = None) -> dict:
    """One line of items.jsonl; without a swap it is the first hop, whose answer is the bridge."""
    answer = chain.answer if swap else chain.bridge
    row = {"relation": relation, "subject": chain.subject, "answer": answer}
    row |= {"bridge": chain.bridge, "swap": swap} if swap else {}
    return row | ({"aliases": ALIASES[answer]} if answer in ALIASES else {})


def check_relation(name: str, relation: dict, rows: list[dict], first_token: "facts.FirstToken") -> None:
    """No bridge or answer in a text, first tokens that tell the choices apart, and enough subjects for a probe."""
    collide = collections.Counter(first_token(choice) for choice in relation["choices"])
    if collide.most_common(1)[0][1] > 1:
        raise SystemExit(f"{name}: two of {relation['choices']} begin with one token")
    cells = collections.Counter((row["answer"], facts.fold_of(row["subject"])) for row in rows)
    sizes = collections.Counter(row["answer"] for row in rows)
    few = sorted({answer for (answer, _), n in cells.items() if sizes[answer] - n < OUTSIDE})
    if few:
        raise SystemExit(
            f"{name}: {few} have fewer than {OUTSIDE} subjects outside some fold; add names to subjects.toml"
        )
    told = [*relation["inspection"], *relation["questions"], *relation["knowledge"]]
    told += [*relation["train"], *relation["test"], *relation.get("hops", ("", []))[1]]
    words = f" {' | '.join(facts.fold_key(text) for text in told)} "
    given = {word for row in rows for word in (row["answer"], row.get("bridge", row["answer"]))}
    leaked = [word for word in sorted(given) if f" {facts.fold_key(word)} " in words]
    if leaked:
        raise SystemExit(f"{name}: {leaked} in its texts")


def compose(prose: dict, kinds: dict[str, Kind], table: dict) -> tuple[dict, dict, dict]:
    """All relations, their rows, and the shortcut of each chain."""
    wanted = tomllib.loads((HERE / "subjects.toml").read_text("utf-8"))["chains"]
    relations, rows, shortcuts = {}, {}, {}
    for name, kind in prose["kinds"].items():
        own = {chain: attr for chain in wanted for attr in prose["attributes"] if chain == f"{name}_{attr}"}
        pool = choose_pool(name, kinds[name], dict.fromkeys(b for chain in own for b in wanted[chain]))
        chosen = {chain: choose_chains(chain, wanted[chain], pool, table[attr]) for chain, attr in own.items()}
        hops = {subject: Chain(subject, bridge, bridge) for bridge, names in pool.items() for subject in names}
        first = kind["first"]
        asked = [prose["attributes"][attr] for attr in own.values()]
        relations[first] = first_relation(kind, asked, sorted(pool))
        rows[first] = [fact_row(first, hops[subject]) for subject in sorted(hops, key=facts.fold_key)]
        for chain, attr in own.items():
            both = chain_relations(kind, prose["attributes"][attr], sorted({c.answer for c in chosen[chain]}))
            swaps = choose_swaps(chain, chosen[chain])
            shortcuts[chain] = shortcut(kinds[name], table[attr])
            for relation, content in zip((chain, f"{chain}_correction"), both, strict=True):
                relations[relation] = content
                rows[relation] = [fact_row(relation, c, swaps[c.subject]) for c in chosen[chain]]
    return relations, rows, shortcuts


def report(name: str, relation: dict, rows: list[dict], shortcuts: dict) -> None:
    """A line of the README's tables."""
    sizes = collections.Counter(row["answer"] for row in rows).values()
    folds = collections.Counter(facts.fold_of(row["subject"]) for row in rows)
    line = [name, relation["site"], len(rows), len(sizes), len({row.get("bridge") for row in rows})]
    line += [", ".join(str(folds[i]) for i in range(facts.FOLDS)), f"{min(sizes)} – {max(sizes)}"]
    if name in shortcuts:
        answer, share = shortcuts[name]
        line += [answer, f"{share:.2f}", "yes" if answer in relation["choices"] else "no"]
    print("|", " | ".join(map(str, line)), "|")


def write(prose: dict, first_token: "facts.FirstToken") -> None:
    relations, rows, shortcuts = compose(prose, *read_kinds())
    toml = ["# Written by build.py from prose.toml: edit there.", f"name = {quote(prose['name'])}"]
    toml += [f"summary = {quote(prose['summary'])}"]
    lines = []
    for name, relation in relations.items():
        check_relation(name, relation, rows[name], first_token)
        report(name, relation, rows[name], shortcuts)
        toml += table_lines(name, relation)
        lines += [json.dumps(row, ensure_ascii=False) for row in rows[name]]
    shortcut_lines = ["# Written by build.py: the answer of most subjects of the kind in the source, before balancing."]
    shortcut_lines += [
        f"{name} = {{ answer = {quote(answer)}, share = {share:.3f} }}" for name, (answer, share) in shortcuts.items()
    ]
    for file, content in (("task.toml", toml), ("items.jsonl", lines), ("shortcuts.toml", shortcut_lines)):
        (HERE / file).write_text("\n".join(content) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    write(tomllib.loads((HERE / "prose.toml").read_text("utf-8")), facts.FirstToken(sys.argv[1]))
