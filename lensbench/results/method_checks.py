"""Which checks a version of a method fails, kept by version: a run checks each version of a method once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensbench.utils.cache import CHECKS, cache_path, cache_root, read_sealed, write_sealed


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
    write_sealed(_file(cache_root(), version), found.entry())


def checks_of(version: str) -> MethodChecks | None:
    """Return what was found of a version of a method; None where it was never checked, or the file is damaged."""
    found = read_sealed(_file(cache_path(), version))
    return None if found is None else read_checks(found)


def _file(root: Path, version: str) -> Path:
    return root / CHECKS / f"{version}.json"
