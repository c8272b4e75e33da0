"""What every figure can be asked for. It imports nothing, so that a run can be read without matplotlib."""

from typing import TypedDict


class Choice(TypedDict, total=False):
    """What every figure can be asked for; see `lensbench.report.view.View`."""

    task: str | None
    relation: str | None
    site: str | None
    metric: str
    rule: str
    width: str | float
    title: bool
