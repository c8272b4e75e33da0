"""Write task.toml and items.jsonl from prose.toml and entities.jsonl. Run by hand, in an environment of its own.

    pip install . tokenizers                          # lensbench itself: its folds
    apt-get install wordnet-base                      # WordNet 3.0: no invented name may be a word
    python tasks/entity_resolution/build.py TOKENIZER.json

TOKENIZER.json is the tokenizer file of SmolLM2-135M: answers are put into sets in which it tells the first tokens
apart. entities.jsonl is written by hand. The result depends on nothing else: no clock, no network, a fixed seed.
"""

import collections
import json
import random
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lensbench.tasks import N_FOLDS as FOLDS
from lensbench.tasks import fold_of
from lensbench.tasks.names import plain_words

HERE = Path(__file__).parent
WORDNET = Path("/usr/share/wordnet")
SEED = "entity_resolution/1"
SET_SIZE = 8
CAP = 40
MIN_CLASS = 8
INVENTED = 60
# The first words of both begin with the same token.
SAYABLE = {"United States": "America", "United Kingdom": "Britain"}

Entity = dict[str, Any]
FirstToken = Callable[[str], int]


def leaks(subject: str, answer: str) -> bool:
    """Whether a word of the answer begins like a word of the subject."""
    stems = {word[:5] for word in plain_words(subject).split() if len(word) > 3}
    return any(word[:5] in stems for word in plain_words(answer).split())


def shuffled(entities: Iterable[Entity], purpose: str) -> list[Entity]:
    """The well known first, at random within a tier."""
    rng = random.Random(f"{SEED}/{purpose}")
    drawn = sorted(entities, key=lambda entity: entity["name"])
    rng.shuffle(drawn)
    return sorted(drawn, key=lambda entity: entity["tier"])


# ---------------------------------------------------------------- classes


def choose_class(name: str, labelled: Iterable[tuple[Entity, str]]) -> list[dict[str, Any]]:
    """At most CAP facts a class, evenly over the folds; classes that are too small are left out."""
    classes: dict[str, list[Entity]] = collections.defaultdict(list)
    for entity, label in labelled:
        if not leaks(entity["name"], label):
            classes[label].append(entity)
    facts = []
    for label, members in sorted(classes.items()):
        by_fold = [[e for e in shuffled(members, f"{name}/{label}") if fold_of(e["name"]) == f] for f in range(FOLDS)]
        taken = [entity for fold in by_fold for entity in fold[: CAP // FOLDS]]
        if len(taken) >= MIN_CLASS:
            facts += [fact(name, entity, label) for entity in taken]
    return facts


def fact(relation: str, entity: Entity, answer: str, **more: Any) -> dict[str, Any]:
    return {"relation": relation, "subject": entity["name"], "answer": answer, **more}


def allowed(entities: list[Entity], relation: str) -> list[Entity]:
    """Without those that entities.jsonl leaves out of a relation, where more than one answer is right."""
    return [entity for entity in entities if relation not in entity.get("leave_out", ())]


def kinds(entities: list[Entity]) -> list[dict[str, Any]]:
    return choose_class("kind", ((entity, entity["type"]) for entity in allowed(entities, "kind")))


def places(entities: list[Entity]) -> list[dict[str, Any]]:
    labelled = (
        (entity, SAYABLE.get(entity["place"][0], entity["place"][0]))
        for entity in allowed(entities, "place")
        if entity["type"] != "country"
    )
    facts = choose_class("place", labelled)
    other = {short: full for full, short in SAYABLE.items()}
    return [one | {"aliases": [other[one["answer"]]]} if one["answer"] in other else one for one in facts]


def eras(entities: list[Entity]) -> list[dict[str, Any]]:
    return choose_class("era", ((entity, entity["era"][0]) for entity in allowed(entities, "era") if entity["era"]))


# ---------------------------------------------------------------- open relations: sets of eight of one type


Answer = tuple[str, Entity]


def words_of(entity: Entity) -> set[str]:
    """What is said of an entity, each word by its beginning."""
    texts = [entity["name"], entity["description"]]
    texts += [text for key in ("claim", "place", "aliases") for text in entity[key]]
    return {word[:6] for text in texts for word in plain_words(text).split()}


def clash(one: Answer, other: Answer) -> bool:
    """Whether the answer of one is said of the other too: both would be right."""
    keys = [{word[:6] for word in plain_words(text).split() if len(word) > 3} for text, _ in (one, other)]
    if len(one[0].split()) > 1:  # whole descriptions share words
        return False
    return bool(keys[0] & words_of(other[1]) or keys[1] & words_of(one[1]))


def partition(purpose: str, answers: list[Answer], first_token: FirstToken) -> list[list[Answer]]:
    """Sets of SET_SIZE answers of different first tokens, drawn at random; what fills no set is left out."""
    rest = sorted(answers, key=lambda pair: pair[0])
    random.Random(f"{SEED}/{purpose}").shuffle(rest)
    sets: list[list[Answer]] = []
    while rest:
        chosen: dict[int, Answer] = {}
        for pair in rest:
            if len(chosen) < SET_SIZE and not any(clash(pair, other) for other in chosen.values()):
                chosen.setdefault(first_token(pair[0]), pair)
        if len(chosen) < SET_SIZE:
            return sets
        sets.append(list(chosen.values()))
        taken = {pair[0] for pair in chosen.values()}
        rest = [pair for pair in rest if pair[0] not in taken]
    return sets


def open_facts(
    name: str, entities: list[Entity], answer: Callable[[Entity], str | None], first_token: FirstToken
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Facts and choice sets, each set within one type."""
    facts, sets = [], []
    for kind in sorted({entity["type"] for entity in entities}):
        answers = [(text, entity) for entity in entities if entity["type"] == kind and (text := answer(entity))]
        for chosen in partition(f"{name}/{kind}", answers, first_token):
            sets.append(sorted(text for text, _ in chosen))
            facts += [fact(name, entity, text, popularity=4 - entity["tier"]) for text, entity in chosen]
    return facts, sorted(sets)


def claims(entities: list[Entity]) -> dict[str, str]:
    """For each name the first word of its claims that no better known entity has."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for entity in shuffled(entities, "claim"):
        for word in entity["claim"]:
            if " " not in word and plain_words(word) not in taken and not leaks(entity["name"], word):
                taken.add(plain_words(word))
                found[entity["name"]] = word
                break
    return found


# ---------------------------------------------------------------- invented names


def invented(count: int, taken: set[str]) -> list[str]:
    """Names of two words made of syllables, none of which is a word or name of WordNet's."""
    words = {line.split()[0].casefold() for kind in ("noun", "verb", "adj", "adv") for line in lines(kind)}
    rng = random.Random(f"{SEED}/invented")
    names: list[str] = []
    while len(names) < count:
        word = ["".join(rng.choice(part) for part in (ONSETS, VOWELS, CODAS)) for _ in range(4)]
        first, last = (word[0] + word[1]).capitalize(), (word[2] + word[3]).capitalize()
        if {first.casefold(), last.casefold()} & (words | taken) or f"{first} {last}" in names:
            continue
        if sum(fold_of(name) == fold_of(f"{first} {last}") for name in names) < count // FOLDS:
            names.append(f"{first} {last}")
    return names


ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gl", "tr", "st", "kl"]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ei", "ou"]
CODAS = ["", "", "", "l", "n", "r", "s", "m", "th", "nd"]


def lines(kind: str) -> Iterable[str]:
    with (WORDNET / f"index.{kind}").open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith(" "))


def renown(entities: list[Entity]) -> list[dict[str, Any]]:
    """As many well known real names as invented ones, in each fold."""
    words = {word for entity in entities for word in plain_words(entity["name"]).split()}
    made = [{"name": name} for name in invented(INVENTED, words)]
    real = [
        e for e in shuffled(entities, "renown") if len(e["name"].split()) == 2 and e["type"] not in ("film", "book")
    ]
    by_fold = [[e for e in real if fold_of(e["name"]) == fold][: INVENTED // FOLDS] for fold in range(FOLDS)]
    known = [entity for fold in by_fold for entity in fold]
    return [fact("renown", e, "famous") for e in known] + [fact("renown", e, "unknown") for e in made]


# ---------------------------------------------------------------- files


def quote(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_list(key: str, values: list[Any]) -> list[str]:
    return [f"{key} = [", *(f"    {quote(value)}," for value in values), "]"]


def relation_lines(name: str, prose: dict[str, Any], sets: list[list[str]]) -> list[str]:
    own = prose["relations"][name]
    words = {**prose["relations"][own.get("same", name)], **own}
    out = [f"[relations.{name}]", f"kind = {quote(words['kind'])}", f"summary = {quote(words['summary'])}"]
    if "describe" in words:
        out.append(f"describe = {words['describe']}")
    if "same" in own:
        out.append("by_token = true")
    for key in ("inspection", "questions", "knowledge"):
        out += write_list(key, words[key])
    out += write_list("choice_sets", sets)
    sources = {"subject": prose["sources"]["subject"]}
    if "same" not in own:
        sources["answer"] = prose["sources"]["answer"][name]
    for site, splits in sources.items():
        out += ["", f"[relations.{name}.sources.{site}]"]
        for split in ("train", "test"):
            out += write_list(split, splits[split])
    return [*out, ""]


def main(tokenizer: str) -> None:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)

    def first_token(answer: str) -> int:
        return loaded.encode(f" {answer}", add_special_tokens=False).ids[0]

    prose = tomllib.loads((HERE / "prose.toml").read_text(encoding="utf-8"))
    entities = [json.loads(line) for line in (HERE / "entities.jsonl").read_text(encoding="utf-8").splitlines()]
    for entity in entities:
        # As it stands in a sentence.
        entity["name"] = f"the {entity['name']}" if entity.get("the") else entity["name"]
    several = [e for e in entities if len(loaded.encode(f" {e['name']}", add_special_tokens=False).ids) > 1]
    facts: dict[str, list[dict[str, Any]]] = {
        "kind": kinds(entities), "place": places(entities), "era": eras(entities), "renown": renown(entities),
    }  # fmt: skip
    sets = {name: [sorted({one["answer"] for one in own})] for name, own in facts.items()}
    keywords = claims(entities)
    facts["claim"], sets["claim"] = open_facts("claim", entities, lambda e: keywords.get(e["name"]), first_token)
    facts["description"], sets["description"] = open_facts(
        "description", entities, lambda e: e["description"], first_token
    )
    by_name = {entity["name"]: entity for entity in entities}
    for one in facts["description"]:
        entity = by_name[one["subject"]]
        one["facets"] = {key: entity[key] for key in ("place", "era", "claim") if entity[key]}
    names = {entity["name"] for entity in several}
    for name in ("kind", "claim"):
        cut = [one | {"relation": f"{name}_by_token"} for one in facts[name] if one["subject"] in names]
        kept = {one["answer"] for one in cut}
        facts[f"{name}_by_token"] = cut
        sets[f"{name}_by_token"] = [own for own in sets[name] if kept & set(own)]
    order = list(prose["relations"])
    toml = ["# Written by build.py from prose.toml and entities.jsonl: edit there.", 'name = "entity_resolution"']
    toml += [f"summary = {quote(prose['summary'])}", ""]
    for name in order:
        toml += relation_lines(name, prose, sets[name])
    (HERE / "task.toml").write_text("\n".join(toml).rstrip() + "\n", encoding="utf-8")
    rows = [one for name in order for one in facts[name]]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    (HERE / "items.jsonl").write_text(text, encoding="utf-8")
    for name in order:
        folds = collections.Counter(fold_of(one["subject"]) for one in facts[name])
        count = collections.Counter(one["answer"] for one in facts[name])
        print(
            name,
            len(facts[name]),
            len(count),
            [folds[f] for f in range(FOLDS)],
            count.most_common()[0],
            count.most_common()[-1],
        )
    print("of several tokens:", len(several), "of", len(entities))


if __name__ == "__main__":
    main(*sys.argv[1:])
