"""Checks of the texts in `task.toml`, and of the hops of a chain."""

import re
from collections.abc import Mapping
from typing import Any

from lensbench.tasks.facts import ANSWER_SLOT, BRIDGE_SLOT, HOP_SITES, SLOT, Hops
from lensbench.tasks.problems import File, check_keys

_HOP_KEYS = {"first": str, "second": list}
_MORE_HOP_KEYS = {"correct": bool, "phrases": list}


def check_texts(file: File, header: str, key: str, texts: Any, given_answer: bool = False) -> bool:
    """Check a list of texts with one slot each; where the answer is given, before the slot that is read."""
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        do = "write at least one"
        file.problem(file.find(key, header), f"{key} of [{header}] is {texts!r:.60}", "a list of texts", do)
        return False
    early = {"inspection": "an inspection prompt", "train": "a source text", "test": "a source text"}
    must_not_start = key in early and not header.endswith((".answer", ".t1", ".t2"))
    good = True
    for text in texts:
        line, problem = file.find(key, header, text), None
        if given_answer and not _states_answer(text):
            problem = ("one {answer} and {subject} after it", "state the fact, then name the subject")
        elif not given_answer and (text.count(SLOT) != 1 or re.search(r"[{}]", text.replace(SLOT, "", 1))):
            problem = ("exactly one {subject} and no other brace", "there is no other templating")
        elif must_not_start and text.startswith(SLOT):
            problem = (f"{early[key]} with words before the slot", "token 0 is an attention sink: put a word before it")
        elif text != text.strip():
            problem = ("no space at the ends", "the next token brings its own space")
        elif texts.count(text) > 1:
            problem = ("different texts", "remove one of them")
        if problem:
            file.problem(line, f"{text!r}", *problem)
            good = False
    return good


def _states_answer(text: str) -> bool:
    before, slot, after = text.rpartition(SLOT)
    rest = (before + after).replace(ANSWER_SLOT, "").replace(SLOT, "")
    return bool(slot) and before.count(ANSWER_SLOT) == 1 and not re.search(r"[{}]", rest)


def read_hops(table: Mapping[str, Any]) -> Hops | None:
    """Return the hops of a checked relation, None where it is no chain."""
    if "hops" not in table:
        return None
    hops = table["hops"]
    return Hops(hops["first"], tuple(hops["second"]), hops.get("correct", False), tuple(hops.get("phrases", ())))


def check_hops(file: File, name: str, table: Mapping[str, Any]) -> bool:
    """Check the table of a chain's hops: whether the phrases stand in the sources is checked by `check_phrases`."""
    if "hops" not in table:
        return True
    header, hops = f"relations.{name}.hops", table["hops"]
    if not check_keys(file, file.find("", header), hops, _HOP_KEYS, f"hops of {name!r}", _MORE_HOP_KEYS):
        return False
    second = hops["second"]
    if len(second) != 2 or not all(isinstance(text, str) and text.count(BRIDGE_SLOT) == 1 for text in second):
        given = f"second = {second!r:.60}"
        file.problem(file.find("second", header), given, "two texts with one {bridge} each", "write the two prompts")
        return False
    return "phrases" not in hops or check_texts(file, header, "phrases", hops["phrases"])


def check_phrases(file: File, name: str, table: Mapping[str, Any]) -> bool:
    """Check that every source in which a chain is asked says its first hop in one of the phrases, and once."""
    phrases = table.get("hops", {}).get("phrases", [])
    sources = table["sources"]
    asked = [(site, split, text) for site in HOP_SITES for split, own in sources.get(site, {}).items() for text in own]
    good = True
    for site, split, text in asked if phrases else ():
        said = sum(text.count(phrase) for phrase in phrases)
        if said != 1:
            line = file.find(split, f"relations.{name}.sources.{site}", text)
            given = f"{text!r} has {said} of the phrases of {name}.hops"
            file.problem(line, given, "exactly one", "say the first hop in a phrase, or mend the phrases")
            good = False
    return good
