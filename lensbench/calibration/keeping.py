"""Calibrations are kept by version of the method; a report carries that of the very version that made it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbench.cache import atomic_file, cache_root
from lensbench.plan import Make, method_version

if TYPE_CHECKING:
    from lensbench.calibration.calibrating import Calibration

CALIBRATIONS = "calibrations"


def versions(makes: Mapping[str, Make]) -> dict[str, str]:
    """Return a digest of each method's code and settings, and of what its predictions depend on besides."""
    return {name: method_version(make()) for name, make in makes.items()}


def _file(version: str) -> Path:
    return cache_root() / CALIBRATIONS / f"{version}.json"


def keep(result: "Calibration") -> None:
    """Keep what was found of each method."""
    for method, version in result.versions.items():
        found, tried = result.power(method)
        mine = [one for one in result.findings if one.method == method]
        plain = {
            "method": method,
            "version": version,
            "model": result.model,
            "found": found,
            "tried": tried,
            "too_early": sum(one.too_early for one in mine),
            "false_alarms": sum(bool(one.privileged) for one in mine if not one.planted),
            "not_planted": sum(not one.planted for one in mine),
            "emergence_right": sum(
                one.emergence.contains(one.expected) for one in mine if one.kind == "plain" and one.planted
            ),
            "alarms": [asdict(one) for one in result.alarms if one.method == method],
            "limit": result.limit,
        }
        file = _file(version)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as out:
            out.write((json.dumps(plain, indent=1) + "\n").encode())


def calibration_of(version: str) -> dict[str, Any] | None:
    """Return what was found of a version of a method; None where it was never calibrated, or the file is damaged."""
    try:
        found = json.loads(_file(version).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
