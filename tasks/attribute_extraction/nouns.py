"""Facts from the nouns of WordNet: of what kind an animal or a thing is, where a river flows. Used by build.py only."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Fact = tuple[str, str]
"""Subject and answer."""

# The top of each class, as WordNet 3.0 numbers it; where tops lie within one another, the first one counts.
ANIMALS = {
    "01503061": "bird",
    "02512053": "fish",
    "01861778": "mammal",
    "01661091": "reptile",
    "02159955": "insect",
    "01627424": "amphibian",
    "01974773": "crustacean",
    "01940736": "mollusk",
}
FOODS = {
    "07850329": "cheese",
    "07698915": "pasta",
    "07679356": "bread",
    "07829412": "sauce",
    "07597365": "candy",
    "07881800": "drink",
    "07583197": "soup",
    "07705931": "fruit",
    "07707451": "vegetable",
    "07649854": "meat",
    "07628870": "cake",
    "07809368": "seasoning",
    "07812184": "seasoning",
}
OBJECTS = {
    "02858304": "boat",
    "02686568": "aircraft",
    "03380867": "footwear",
    "03502509": "headgear",
    "03419014": "garment",
    "04565375": "weapon",
    "03800933": "instrument",
    "04451818": "tool",
    "03405725": "furniture",
    "04524313": "vehicle",
    "02913152": "building",
    "03309808": "fabric",
    "03597469": "jewelry",
    "03094503": "container",
}
PLANTS = {
    "11545714": "fern",
    "12102133": "grass",
    "12101870": "grass",
    "13100677": "vine",
    "11669921": "flower",
    "13104059": "tree",
    "13112664": "shrub",
}
INSTRUMENTS = {
    "03614532": "keyboards",
    "02891788": "brass",
    "04598582": "woodwinds",
    "03915437": "percussion",
    "04338517": "strings",
}


@dataclass(frozen=True)
class Noun:
    """One sense: its words, its glosses, and the senses above it."""

    words: tuple[str, ...]
    gloss: str
    kinds: tuple[str, ...]
    instance_of: tuple[str, ...]
    parts_of: tuple[str, ...]


@dataclass(frozen=True)
class Nouns:
    """All senses by number, and the numbers of a word's senses, the most frequent sense first."""

    senses: dict[str, Noun] = field(default_factory=dict)
    of_word: dict[str, list[str]] = field(default_factory=dict)

    def above(self, number: str, by: tuple[str, ...]) -> set[str]:
        """All senses above one, by way of the named fields."""
        seen: set[str] = set()
        todo = [number]
        while todo:
            noun = self.senses[todo.pop()]
            new = {up for name in by for up in getattr(noun, name)} - seen
            seen |= new
            todo += sorted(new)
        return seen

    def names_above(self, number: str, by: tuple[str, ...]) -> set[str]:
        """All words of the senses above one."""
        return {word for up in self.above(number, by) for word in self.senses[up].words}


def read_nouns(wordnet: Path) -> Nouns:
    """Read all nouns of an installed WordNet 3.0."""
    nouns = Nouns()
    for line in (wordnet / "data.noun").read_text("utf-8").splitlines():
        if line.startswith("  "):
            continue
        left, _, gloss = line.partition(" | ")
        part = left.split()
        at = 4 + 2 * int(part[3], 16)
        pointers = [part[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(part[at]))]
        ups = {
            sign: tuple(to for kind, to, pos, _ in pointers if kind == sign and pos == "n")
            for sign in ("@", "@i", "#p")
        }
        words = tuple(word.replace("_", " ") for word in part[4:at:2])
        nouns.senses[part[0]] = Noun(words, gloss.strip(), ups["@"], ups["@i"], ups["#p"])
    for line in (wordnet / "index.noun").read_text("utf-8").splitlines():
        if not line.startswith("  "):
            part = line.split()
            nouns.of_word[part[0].replace("_", " ")] = part[-int(part[2]) :]
    return nouns


def chosen_kinds(nouns: Nouns, chosen: dict[str, str], tops: dict[str, str]) -> Iterator[Fact]:
    """Words that have a sense below a top of their class."""
    for answer, word in words_of(chosen):
        below = {top for top, name in tops.items() if name == answer}
        senses = nouns.of_word.get(word.lower(), [])
        require(any(below & nouns.above(number, ("kinds",)) for number in senses), word, answer)
        yield word, answer


def chosen_languages(nouns: Nouns, chosen: dict[str, str]) -> Iterator[Fact]:
    """Languages that have a sense below the family of their class."""
    for answer, word in words_of(chosen):
        families = (nouns.names_above(number, ("kinds",)) for number in nouns.of_word.get(word.lower(), []))
        require(any(answer in names for names in families), word, answer)
        yield word, answer


def chosen_places(nouns: Nouns, chosen: dict[str, str], kinds: set[str], within: dict[str, str]) -> Iterator[Fact]:
    """Rivers or islands which WordNet puts into no other place of the relation; `within` says which lies in which."""
    for answer, word in words_of(chosen):
        senses = nouns.of_word.get(word.lower(), [])
        named = [number for number in senses if kinds & nouns.names_above(number, ("instance_of",))]
        fit = {answer, within.get(answer, answer)}
        places = set().union(*(_places(nouns, number, set(chosen)) for number in named))
        require(bool(senses) and places <= fit, word, answer)
        yield word, answer


def _places(nouns: Nouns, number: str, places: set[str]) -> set[str]:
    above = nouns.names_above(number, ("parts_of", "instance_of"))
    return {place for place in places if place in above or place in nouns.senses[number].gloss}


def words_of(chosen: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Class and word."""
    for answer, words in chosen.items():
        for word in words.split(","):
            yield answer, " ".join(word.split())


def require(agrees: bool, word: str, answer: str) -> None:
    """Stop the build at a word that WordNet does not confirm."""
    if not agrees:
        raise SystemExit(f"chosen.toml: WordNet does not have {word!r} as {answer!r}; take it out")
