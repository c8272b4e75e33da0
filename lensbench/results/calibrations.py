"""Calibrations that were made before, kept by version of the method: a run carries that of the very version it used."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lensbench.utils.cache import CALIBRATIONS, cache_path, cache_root, read_sealed, write_sealed


@dataclass(frozen=True)
class Calibrated:
    """What calibration found of one version of a method.

    Attributes:
        version: a digest of the method's code and settings, and of all that its predictions depend on besides.
        model: in which facts were planted.
        found: on how many plain implants the fact was found where it can be.
        tried: of how many.
        emergence_right: on how many of them the layer at which it was planted lies in the interval of the change-point.
        too_early: on how many implants something was claimed, or differed, where nothing can be.
        false_alarms: of the relations that nobody was told, those with a verdict for this method.
        not_planted: how many such relations were tried.
        failed_checks: what an instrument must do and this does not; no verdict on it can be trusted then.
        limit: of items a relation.
    """

    version: str
    model: str
    found: int
    tried: int
    emergence_right: int
    too_early: int
    false_alarms: int
    not_planted: int
    failed_checks: tuple[str, ...] = ()
    limit: int | None = None

    def in_words(self) -> str:
        """One line for a report."""
        if self.failed_checks:
            return f"fails {', '.join(self.failed_checks)}: its verdicts cannot be trusted"
        wrong = self.too_early + self.false_alarms
        return (
            f"found {self.found} of {self.tried} planted facts, {wrong} false claim{'' if wrong == 1 else 's'} in "
            f"{self.tried + self.not_planted} trials ({self.model})"
        )


def _file(root: Path, version: str) -> Path:
    return root / CALIBRATIONS / f"{version}.json"


def keep_calibration(found: Calibrated) -> None:
    """Keep what was found of a version of a method."""
    write_sealed(_file(cache_root(), found.version), asdict(found))


def calibration_of(version: str) -> Calibrated | None:
    """Return what was found of a version of a method; None where it was never calibrated, or the file is damaged."""
    found = read_sealed(_file(cache_path(), version))
    return None if found is None else read_calibrated(found)


def read_calibrated(given: Mapping[str, Any]) -> Calibrated:
    """Read what `dataclasses.asdict` made of one.

    Raises:
        ValueError: another form.
    """
    try:
        return Calibrated(**{**given, "failed_checks": tuple(given["failed_checks"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"no calibration: {error}") from None
