"""Whose knowledge is it? The share of answers that follow the target's facts, the verbalizer's, or neither."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.arrays import CONTROL_TASK, KEYS, NO_LAYER
from lensbench.results.bands import SCORE, Floats, simultaneous_band
from lensbench.results.golds import credit
from lensbench.results.records import ALL

Facts: TypeAlias = Mapping[str, Mapping[str, str]]
"""relation -> name -> value, as `facts.json` of an implant has them."""

FOLLOWS = ("target", "verbalizer", "neither")
_CREDIT = {follows: f"credit of {follows}" for follows in FOLLOWS}
"""Columns of their own: records have a column `verbalizer`."""
COLUMNS = (*KEYS, "relation", "attempt", "layer", "follows", "share", "ci_low", "ci_high", "n", "subjects")


def shares(
    records: pd.DataFrame,
    target_facts: Facts,
    verbalizer_facts: Facts,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell whose facts the answers follow, on the items where target and verbalizer hold different ones.

    Each row is a share of the corrected predictions of a method, or one of its baselines, at a layer, by one attempt;
    the three shares of a layer sum to 1. Ties are shared out as in `golds.credit`. Bands are simultaneous over layers,
    subjects are resampled whole; rows of relation `all`, where there are several, are means over relations.

    Args:
        records: of one run.
        target_facts: what the target holds.
        verbalizer_facts: what the verbalizer holds.
        level: of the bands.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UsageError: there is no item on which the two differ.
        LensbenchError: a fact is not among the answers that were said or asked for.
    """
    kept = _differing(records[records["baseline"] != CONTROL_TASK], target_facts, verbalizer_facts)
    if kept.empty:
        raise UsageError(
            "the facts of target and verbalizer differ on no item of these records: relations "
            f"{', '.join(sorted(map(str, records['relation'].unique())))}, facts of {', '.join(sorted(target_facts))} "
            f"and {', '.join(sorted(verbalizer_facts))}"
        )
    layer = kept["layer"].astype("float64").fillna(NO_LAYER).astype(int)
    kept = kept.assign(layer=layer, **_followed(kept))
    blocks = [
        pd.DataFrame(block)
        for key, cell in kept.groupby([*KEYS, "attempt"], observed=True, sort=True)
        for block in _blocks(dict(zip((*KEYS, "attempt"), map(str, key), strict=True)), cell, (level, draws, seed))
    ]
    table = pd.concat(blocks, ignore_index=True)[list(COLUMNS)]
    table["layer"] = table["layer"].where(table["layer"] != NO_LAYER).astype(pd.Int16Dtype())
    return table


def _differing(records: pd.DataFrame, target: Facts, verbalizer: Facts) -> pd.DataFrame:
    pairs = list(zip(records["relation"].astype(str), records["subject"].astype(str), strict=True))
    first, second = ([facts.get(r, {}).get(s) for r, s in pairs] for facts in (target, verbalizer))
    keep = [a is not None and b is not None and a != b for a, b in zip(first, second, strict=True)]
    columns = {"target": np.array(first, dtype=object), "other": np.array(second, dtype=object)}
    return records.assign(**columns)[keep]


def _followed(records: pd.DataFrame) -> dict[str, Floats]:
    """The credit of each prediction with the target's fact as gold, with the verbalizer's, and the rest."""
    names = ("target", "other", "predicted_corrected", "gold")
    said = {name: records[name].astype(str).to_numpy(dtype=object) for name in names}
    known = {*said["predicted_corrected"], *said["gold"]}
    for name in ("target", "other"):
        if strange := sorted(set(said[name]) - known):
            raise LensbenchError(
                f"{strange[0]!r} is nobody's gold answer and was never said in these records: are the facts those of "
                "these relations?"
            )
    code = {answer: index for index, answer in enumerate(sorted(known))}
    codes = {name: np.array([code[answer] for answer in answers], dtype=np.int64) for name, answers in said.items()}
    choices = np.rint(1.0 / records["chance"].to_numpy(np.float64)).astype(np.int64)
    earned = records["correct_corrected"].to_numpy(np.float64)
    target, other = (
        credit(codes[name], codes["predicted_corrected"], codes["gold"], earned, choices)
        for name in ("target", "other")
    )
    return dict(zip(_CREDIT.values(), (target, other, np.maximum(1.0 - target - other, 0.0)), strict=True))


def _blocks(key: dict[str, str], cell: pd.DataFrame, how: tuple[float, int, int]) -> Iterator[dict[str, Any]]:
    relations = sorted(cell["relation"].astype(str).unique())
    for relation in (*relations, *([ALL] if len(relations) > 1 else [])):
        part = cell if relation == ALL else cell[cell["relation"] == relation]
        for follows in FOLLOWS:
            wide = part.pivot(index=["item", "subject", "relation"], columns="layer", values=_CREDIT[follows])
            if wide.isna().to_numpy().any():
                raise LensbenchError(
                    f"incomplete records ({', '.join(key.values())}): every item needs an answer at each layer; run "
                    "`lensbench evaluate` again with the same --out"
                )
            subjects = wide.index.get_level_values("subject").astype(str).to_numpy()
            strata = wide.index.get_level_values("relation").astype(str).to_numpy()
            level, draws, seed = how
            band = simultaneous_band(
                wide.to_numpy(np.float64), subjects, strata, scale=SCORE, level=level, draws=draws, seed=seed
            )
            yield {
                **key, "relation": relation, "layer": wide.columns.to_numpy(), "follows": follows,
                "share": band.estimate, "ci_low": band.low, "ci_high": band.high,
                "n": len(wide), "subjects": len(np.unique(subjects)),
            }  # fmt: skip
