"""The table of docs/trust.md, from the calibration that is kept with the project; run by hand to write it anew."""

import json
from pathlib import Path
from typing import Any

from lensbench.cli.commands.calibrate import _spans

KEPT = Path(__file__).parents[1] / "reports" / "reference-calibration" / "calibration.json"


def rows() -> list[str]:
    """A row an implant and relation, a cell a method: where it emerges, where it is privileged, the gap."""
    result = json.loads(KEPT.read_text(encoding="utf-8"))
    methods = ("patchscope", "linear_probe", "logit_lens")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in result["findings"]:
        found.setdefault((one["trial"], one["relation"]), {})[one["method"]] = one
    lines = []
    for (trial, relation), by_method in found.items():
        first = next(iter(by_method.values()))
        held = ", ".join(map(str, first["layers"])) if first["planted"] else "nowhere"
        cells = [_cell(by_method[method]) for method in methods]
        lines.append(f"| `{trial}` | {relation} | {held} | {' | '.join(cells)} |")
    return lines


def _cell(one: dict[str, Any]) -> str:
    layer, low, high = (one["emergence"][name] for name in ("layer", "low", "high"))
    emerges = "never" if layer is None else f"{layer} [{low}, {high}]"
    privileged = _spans(tuple(one["privileged"]), tuple(one["read"]))
    gap, least, _ = one["gap"]
    return f"{emerges}; {f'**{privileged}**' if privileged else '–'}; {_signed(gap)} (≥ {_signed(least)})"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("0.", ".", 1)


if __name__ == "__main__":
    print("\n".join(rows()))
