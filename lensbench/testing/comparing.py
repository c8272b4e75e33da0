"""What checks share: a method's scores on a bench, and whether two of them are the same."""

from collections.abc import Callable

import torch

from lensbench.harness.bench import Bench, CrossFit
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import NotApplicableError, Scores

Make = Callable[[], Inspector]
Check = Callable[[Make, Bench], None]
TOLERANCE = 5e-4


def scores_of(make: Make, bench: Bench) -> Scores:
    """Return what a method, newly made, answers on a bench."""
    try:
        return CrossFit(make, bench).scores()
    except NotApplicableError as error:
        raise AssertionError(f"{make().name} cannot answer the checks' questions: {error}") from None


def chosen(scores: Scores, items: list[int]) -> Scores:
    """Return the scores of some items."""
    return Scores(scores.attempts, scores.log_scores[:, :, items])


def require_same(found: Scores, expected: Scores, make: Make, complaint: str) -> None:
    """Refuse scores that are not the expected ones.

    Raises:
        AssertionError: other attempts, or other scores.
    """
    assert found.attempts == expected.attempts, (
        f"{make().name}: attempts {found.attempts}, expected {expected.attempts}"
    )
    torch.testing.assert_close(
        found.log_scores.float().cpu(),
        expected.log_scores.float().cpu(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
        msg=lambda text: f"{make().name}: {complaint}\n{text}",
    )
