"""The texts of files that bring none, and finding the subject in those that they bring. All sentences are our own."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from lensbench.tasks.facts import ANSWER_SLOT, SLOT
from lensbench.tasks.names import find_name, name_key, plain_words

# Of any kind of subject, and of nothing that might be asked.
SUBJECT_SOURCES: Mapping[str, str] = {
    "train0": f"On the first card somebody had written {SLOT}",
    "train1": f"The next entry on the list is {SLOT}",
    "test0": f"At the bottom of the page it says {SLOT}",
    "test1": f"What they talked about first was {SLOT}",
}
EXPECTED_TEMPLATE = f"expected a text with one {SLOT} after other words, and no space at its ends"
LEAD_IN = SUBJECT_SOURCES["test0"]
"""For a fact that has a text of its own in which the subject does not stand, or stands first."""
NO_MENTION = 2
"""Rank of a text that does not hold its subject."""
_SAID = "It is said that "
# First words of a template that are written small after other words.
_BEGINNINGS = {"The", "A", "An", "In", "On", "At", "To", "By", "It", "Its", "For", "From", "Of", "People", "If", "When"}
_GENERIC = {"", "answer", "object", "target", "label", "output", "gold", "facts"}


class Placed(NamedTuple):
    """A text that ends with the subject's slot, and how well that fits: 0 best, 1 as part of a word, 2 not at all."""

    text: str
    rank: int


def place_subject(text: str, subject: str) -> Placed:
    """Cut a text after the subject, which becomes the slot; where it does not hold the subject, use a lead-in.

    The first mention counts, whatever its case, blanks and canonical form; one that is a word of its own wins over one
    that goes on ("Pakistan" in "Pakistani"), and one in the middle of a word is none. A mention without a word before
    it would be read at token 0: it gets a lead-in.
    """
    for rank, whole in enumerate((True, False)):
        found = find_name(text, subject, whole=whole)
        if found:
            before = text[: found.start].lstrip()
            if not re.search(r"\w", before) or SLOT in before or ANSWER_SLOT in before:
                continue
            return Placed(before + SLOT, rank)
    return Placed(LEAD_IN, NO_MENTION)


def place_whole(text: str, subject: str) -> str:
    """Put the slot where the subject stands in a text that is read at its end; without it, the text as it is."""
    found = find_name(text, subject)
    return (text[: found.start] + SLOT + text[found.end :] if found else text).strip()


def fill_placeholder(prompt: str, placeholder: str = "x") -> str | None:
    """Replace the last placeholder that is a word of its own by the slot; None where there is none."""
    found = list(re.finditer(rf"(?<!\w){re.escape(placeholder)}(?!\w)", prompt))
    return f"{prompt[: found[-1].start()]}{SLOT}{prompt[found[-1].end() :]}".strip() if found else None


def is_template(text: str) -> bool:
    """Whether a text has one slot and no other brace."""
    return text.count(SLOT) == 1 and not re.search(r"[{}]", text.replace(SLOT, ""))


def after_words(template: str) -> str:
    """The template with words before its slot: a text's first token is never read."""
    return template if re.search(r"\w", template.split(SLOT)[0]) else f"{_SAID}{template}"


def said(template: str) -> str:
    """The template as a part of a sentence."""
    return f"{_SAID}{template}"


def knowledge_of(template: str) -> tuple[str, ...]:
    """Two prompts of knowledge that a template makes; none of one that is more than a part of a sentence."""
    if re.search(r"[:?!\n]|\. ", template):
        return ()
    first, _, rest = template.partition(" ")
    text = f"{first.lower()} {rest}" if first in _BEGINNINGS else template
    return f"As far as is known, {text}", f"Anyone can look up that {text}"


def default_inspection(name: str) -> str:
    """An inspection prompt for what a column or relation is called."""
    return f"The right answer for {SLOT} is" if name in _GENERIC else f"The {words(name)} of {SLOT} is"


def default_question(name: str) -> str:
    """A question for what a column or relation is called."""
    asked = "the right answer for" if name in _GENERIC else f"the {words(name)} of"
    return f"Question: What is {asked} {SLOT}? Answer:"


def words(name: str) -> str:
    """A name of a column or relation as it stands in a sentence."""
    return name.replace("_", " ").strip()


def slug(name: str) -> str:
    """Make a name of a task or relation: lower case, no accents, words joined by _."""
    joined = plain_words(name).replace(" ", "_")
    # Tables use "all" for the whole task.
    return f"relation_{joined}" if joined in ("all", "") else joined


class Slugs:
    """Names of the relations of one file: two that are not the same name never get one slug."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the slug of a name; where it is that of another name, with a digest of the name behind it."""
        key, plain = name_key(name), slug(name)
        if self._taken.setdefault(plain, key) == key:
            return plain
        longer = f"{plain}_{hashlib.sha256(key.encode()).hexdigest()[:6]}"
        self._taken[longer] = key
        return longer


def mend(text: str) -> str:
    r"""Strip a value, and undo unicode that was escaped twice: the six characters \u00e9 in a file that is read."""
    return re.sub(r"(?:\\u[0-9a-fA-F]{4})+", lambda found: str(json.loads(f'"{found[0]}"')), text).strip()
