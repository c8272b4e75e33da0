"""Which checks a version of a method fails, kept by version: a run checks each version of a method once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensbench.utils.cache import CHECKS, atomic_file, cache_path, cache_root


@dataclass(frozen=True)
class MethodChecks:
    """What the checks of `lensbench.testing` found of one version of a method.

    Attributes:
        failed: each check that it fails, with what the check found: `check_folds_are_apart: the scores of ...`.
    """

    failed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it passed all of them."""
        return not self.failed

    @property
    def first(self) -> str:
        """The name of the first check that it fails; empty where it passed."""
        return self.failed[0].partition(":")[0] if self.failed else ""

    def entry(self) -> dict[str, Any]:
        """Return it as `run.json` has it."""
        return {"passed": True} if self.passed else {"passed": False, "failed": list(self.failed)}


def read_checks(entry: dict[str, Any]) -> MethodChecks:
    """Read what `entry` returned."""
    return MethodChecks(tuple(map(str, entry.get("failed", ()))))


def keep_checks(version: str, found: MethodChecks) -> None:
    """Keep what was found of a version of a method."""
    with atomic_file(_file(cache_root(), version)) as out:
        out.write((json.dumps(found.entry(), indent=1) + "\n").encode())


def checks_of(version: str) -> MethodChecks | None:
    """Return what was found of a version of a method; None where it was never checked, or the file is damaged."""
    try:
        return read_checks(json.loads(_file(cache_path(), version).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _file(root: Path, version: str) -> Path:
    return root / CHECKS / f"{version}.json"
