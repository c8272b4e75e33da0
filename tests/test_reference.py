"""The reference study: its page of claims is what its records say, and its findings are what that page says."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.command import lensbench

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "reports" / "reference"
FIGURE = re.compile(r"(?<![\w.])-?\d?\.\d{2,3}\b|(?<![\w.])\d+ %")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "claims.csv")


def test_the_page_of_claims_is_what_the_records_say(tmp_path: Path) -> None:
    for run in (path for path in REFERENCE.iterdir() if path.is_dir() and path.name != "fits"):
        (tmp_path / run.name).symlink_to(run)
    done = lensbench("claims", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("claims.md", "claims.csv"):
        assert (tmp_path / name).read_text() == (REFERENCE / name).read_text(), f"make {name} again: lensbench claims"


def test_every_figure_of_the_findings_is_in_the_table(table: pd.DataFrame) -> None:
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    numbers = pd.concat([table[name] for name in ("estimate", "low", "high")]).dropna()
    known = {round(value, digits) for value in numbers for digits in (2, 3)} | {0.0}
    shares = {round(100 * value) for value in numbers}
    told = FIGURE.findall(text)
    assert len(told) > 20
    shares |= {95, 57, 48}  # the level of the intervals, and published figures of back-patches and affine relations
    percent = {one for one in told if one.endswith("%")}
    unknown = {one for one in percent if int(one[:-2]) not in shares}
    unknown |= {one for one in set(told) - percent if {float(one), -float(one)}.isdisjoint(known)}
    assert not unknown, "these figures are in no claim of reports/reference/claims.csv"


def test_the_readme_counts_the_claims(table: pd.DataFrame) -> None:
    count = table["claim"].nunique()
    assert f"| {count} claims about such methods, most of them published, as tests" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )
    assert count >= 22
