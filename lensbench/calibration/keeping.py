"""What a calibration found of each method, kept for the runs of the very same version."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lensbench.evaluation.plan import Make, method_version
from lensbench.results.calibrations import Calibrated, keep_calibration

if TYPE_CHECKING:
    from lensbench.calibration.calibrate import Calibration


def versions(makes: Mapping[str, Make]) -> dict[str, str]:
    """Return a digest of each method's code and settings, and of what its predictions depend on besides."""
    return {name: method_version(make()) for name, make in makes.items()}


def keep(result: "Calibration") -> None:
    """Keep what was found of each method."""
    for method, version in result.versions.items():
        found, tried = result.power(method)
        mine = [one for one in result.findings if one.method == method]
        plain = [one for one in mine if one.kind == "plain" and one.planted]
        keep_calibration(
            Calibrated(
                version=version,
                model=result.model,
                found=found,
                tried=tried,
                emergence_right=sum(one.emergence.contains(one.expected) for one in plain),
                too_early=sum(one.too_early for one in mine),
                false_alarms=sum(bool(one.privileged) for one in mine if not one.planted),
                not_planted=sum(not one.planted for one in mine),
                failed_checks=tuple(result.failed_checks.get(method, ())),
                limit=result.limit,
            )
        )
