"""Write task.toml and items.jsonl from prose.toml and the facts of tasks/multi_hop. Run by hand.

    python tasks/unsaid/build.py

The result depends on nothing else: no clock, no network, no model, a fixed seed.
"""

import collections
import itertools
import json
import random
import tomllib
from pathlib import Path

from rapidfuzz.distance import OSA

from lensbench.tasks import N_FOLDS, fold_of
from lensbench.tasks.names import plain_words, says

HERE = Path(__file__).parent
SEED = "unsaid/1"
EACH = 4  # visible texts of one clause
TYPOS = 23  # misspellings of one word
SUMS = 24  # calculations with one result
OUTSIDE = 5  # subjects of each answer outside any one fold, for a probe to learn from
TEXTS = ("inspection", "questions", "knowledge")
# The keys beside each letter on a keyboard.
KEYS = {"a": "sq", "c": "xv", "e": "rw", "l": "k", "n": "mb", "o": "ip", "r": "te", "s": "ad", "t": "ry"}
REAL = {"convert"}  # a slip that is a word of its own
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")
ONES += ("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = {20: "twenty", 30: "thirty", 40: "forty"}

Pairs = list[tuple[str, str]]


# ---------------------------------------------------------------- said earlier


def visible_texts(parts: dict) -> list[str]:
    """Each clause with some of the openings or endings."""
    places = [(i, (i + EACH * j - j) % 12) for i in range(len(parts["clauses"])) for j in range(EACH)]
    if "openings" in parts:
        return [f"{parts['openings'][other]} {parts['clauses'][i]}" for i, other in places]
    return [f"{parts['clauses'][i]} {parts['endings'][other]}" for i, other in places]


def deal(name: str, subjects: list[str], choices: list[str]) -> Pairs:
    """Pair texts with answers at random, evenly in each fold and in all."""
    rng, deck, dealt = random.Random(f"{SEED}/{name}"), [], []
    for fold in range(N_FOLDS):
        own = [subject for subject in subjects if fold_of(subject) == fold]
        rng.shuffle(own)
        for subject in own:
            deck = deck or rng.sample(choices, len(choices))
            dealt.append((subject, deck.pop()))
    leaks = [subject for subject in subjects if says(subject, choices)]
    if leaks:
        raise SystemExit(f"{name}: {leaks} hold a choice; reword them in prose.toml")
    return dealt


# ---------------------------------------------------------------- computed


def misspellings(word: str) -> list[str]:
    """One slip behind the first letter: two letters exchanged, one left out, one doubled, or a key beside it hit."""
    places = range(1, len(word))
    found = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]]
    found += [word[:i] + word[i + 1 :] for i in places]
    found += [word[:i] + word[i] + word[i:] for i in places]
    found += [word[:i] + key + word[i + 1 :] for i in places for key in KEYS[word[i]]]
    return [slip for slip in dict.fromkeys(found) if slip not in word and word not in slip and slip not in REAL]


def typos(choices: list[str]) -> Pairs:
    """Misspellings that are one slip from their word, and two or more from any other; drawn evenly over the folds."""
    rng, pairs = random.Random(f"{SEED}/typo"), []
    for word in choices:
        others = [other for other in choices if other != word]
        own = [typo for typo in misspellings(word) if min(OSA.distance(typo, other) for other in others) > 1]
        by_fold = [[typo for typo in rng.sample(own, len(own)) if fold_of(typo) == fold] for fold in range(N_FOLDS)]
        drawn = [typo for turn in itertools.zip_longest(*by_fold) for typo in turn if typo]
        pairs += [(typo, word) for typo in drawn[:TYPOS]]
    return pairs


def spelled(number: int) -> str:
    """A number below fifty in words."""
    tens, ones = TENS.get(number // 10 * 10, ""), number % 10 if number > 19 else number
    return "-".join(word for word in (tens, ONES[ones - 1] if ones else "") if word)


def calculations(choices: list[str]) -> Pairs:
    """For each result the calculations with the smallest numbers.

    None holds its result, and none has the words of another, or one word more.
    """
    rng, pairs, seen, shorter_seen = random.Random(f"{SEED}/arithmetic_middle"), [], set(), set()
    for answer in choices:
        result = ONES.index(answer) + 1
        found = [(a, b, "plus") for a in range(1, result) for b in range(a, result) if a + b == result]
        found += [(a, b, "times") for a in range(2, result) for b in range(a, result) if a * b == result]
        found += [(b + result, b, "minus") for b in range(1, 50 - result)]
        found += [(b * result, b, "divided by") for b in range(2, 49 // result + 1)]
        own = []
        for a, b, sign in sorted(found, key=lambda one: max(one[:2])):
            terms = rng.sample([a, b], 2) if sign in ("plus", "times") else [a, b]
            text = f"{spelled(terms[0])} {sign} {spelled(terms[1])}"
            words = tuple(sorted(plain_words(text).split()))
            shorter = {words[:i] + words[i + 1 :] for i in range(len(words))}
            if answer not in text and words not in seen | shorter_seen and not shorter & seen:
                own.append(text)
                seen.add(words)
                shorter_seen |= shorter
        pairs += [(text, answer) for text in own[:SUMS]]
    return pairs


def bridges() -> dict[str, tuple[dict, Pairs]]:
    """The first hops of multi_hop, read where the query of a chain ends, which does not name the country."""
    folder = HERE.parent / "multi_hop"
    hops = tomllib.loads((folder / "task.toml").read_text("utf-8"))["relations"]
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]
    found = {}
    for first in dict.fromkeys(one["hops"]["first"] for one in hops.values() if "hops" in one):
        chains = [
            one["sources"]["t2"]
            for one in hops.values()
            if one.get("hops", {}).get("first") == first and "t2" in one["sources"]
        ]
        asked = {
            split: [chains[i % len(chains)][split][i] for i in range(len(chains[0][split]))]
            for split in ("train", "test")
        }
        who, what = hops[first]["summary"].split(" → ")
        relation = {key: hops[first][key] for key in ("kind", *TEXTS)} | {"choices": hops[first]["choice_sets"][0]}
        relation |= {"summary": f"{who} → {what}, where the query asks for something of it", "sources": {"t2": asked}}
        own = [row for row in rows if row["relation"] == first]
        found[f"bridge_{first.rsplit('_', 1)[0]}"] = (relation, own)
    return found


# ---------------------------------------------------------------- writing


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def listed(key: str, texts: list[str]) -> list[str]:
    return [f"{key} = [", *(f"    {quote(text)}," for text in texts), "]"]


def table_lines(name: str, relation: dict) -> list[str]:
    lines = ["", f"[relations.{name}]", f"kind = {quote(relation['kind'])}"]
    lines += ["given = true"] if relation.get("given") else []
    lines += [f"summary = {quote(relation['summary'])}"]
    for key in TEXTS:
        lines += listed(key, relation[key])
    lines += [f"choice_sets = [[{', '.join(map(quote, sorted(relation['choices'])))}]]"]
    for site, splits in relation["sources"].items():
        lines += ["", f"[relations.{name}.sources.{site}]"]
        lines += [line for split in ("train", "test") for line in listed(split, splits[split])]
    return lines


def facts_of(name: str, prose: dict) -> Pairs:
    """The subjects of a family of our own writing, with their answers."""
    relation = prose[name]
    if name in prose["texts"]:
        return deal(name, visible_texts(prose["texts"][name]), relation["choices"])
    if name == "typo":
        return typos(relation["choices"])
    if name == "arithmetic_middle":
        return calculations(relation["choices"])
    source = prose["words" if name == "translation" else "scenes"]
    relation["choices"] = list(source)
    return [(subject, answer) for answer, subjects in source.items() for subject in subjects]


def check(name: str, rows: list[dict]) -> None:
    """Enough subjects of each answer outside any fold."""
    cells = collections.Counter((row["answer"], fold_of(row["subject"])) for row in rows)
    sizes = collections.Counter(row["answer"] for row in rows)
    few = sorted({answer for (answer, _), n in cells.items() if sizes[answer] - n < OUTSIDE})
    if few:
        raise SystemExit(f"{name}: {few} have fewer than {OUTSIDE} subjects outside some fold; add some to prose.toml")


def compose() -> tuple[dict, dict[str, dict], dict[str, list[dict]]]:
    """The prose, all relations, and their rows."""
    prose = tomllib.loads((HERE / "prose.toml").read_text("utf-8"))
    relations, rows = {}, {}
    for name in ("held_in_mind", "told_before", "which_of_two"):
        rows[name] = facts_of(name, prose)
        relations[name] = prose[name]
    for name, (relation, own) in bridges().items():
        relations[name], rows[name] = relation, own
    for name in ("typo", "translation", "arithmetic_middle", "association"):
        rows[name] = facts_of(name, prose)
        relations[name] = prose[name]
    return prose, relations, rows


def written() -> dict[str, str]:
    """The two files."""
    prose, relations, rows = compose()
    toml = ["# Written by build.py from prose.toml: edit there.", f"name = {quote(prose['name'])}"]
    toml += [f"summary = {quote(prose['summary'])}"]
    lines = []
    for name, relation in relations.items():
        own = [row if isinstance(row, dict) else {"subject": row[0], "answer": row[1]} for row in rows[name]]
        own = [row | {"relation": name} for row in sorted(own, key=lambda row: plain_words(row["subject"]))]
        check(name, own)
        toml += table_lines(name, relation)
        lines += [json.dumps({"relation": name} | row, ensure_ascii=False) for row in own]
    return {"task.toml": "\n".join(toml) + "\n", "items.jsonl": "\n".join(lines) + "\n"}


if __name__ == "__main__":
    for file, content in written().items():
        (HERE / file).write_text(content, "utf-8", newline="\n")
