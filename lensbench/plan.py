"""The cells of a run: which predictions are to be made, each under a name made of everything that it depends on."""

import hashlib
import inspect as introspection
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lensbench.baselines import Baseline
from lensbench.catalogue import load_inspector
from lensbench.config import RunConfig
from lensbench.errors import UsageError
from lensbench.inspectors.base import Inspector
from lensbench.model.language_model import LanguageModel
from lensbench.records import NO_BASELINE, SCHEMA_VERSION
from lensbench.tasks import SITES, Site, Task

Make = Callable[[], Inspector]


@dataclass(frozen=True)
class Cell:
    """One shard of records: a task at a site, by a method or by one of its rivals."""

    task: Task
    site: Site
    inspector: str
    baseline: Baseline | None
    digest: str

    @property
    def baseline_name(self) -> str:
        """The baseline's name, or "none" for the method itself."""
        return self.baseline.name if self.baseline else NO_BASELINE

    @property
    def file(self) -> str:
        """The shard's file name."""
        parts = (self.task.name, self.site, self.inspector, self.baseline_name, self.digest)
        return "-".join(parts) + ".parquet"


def make_inspectors(config: RunConfig) -> dict[str, Make]:
    """Import the inspectors, and try their settings.

    Raises:
        UsageError: an inspector that cannot be imported, or a parameter that it does not have.
    """
    makes: dict[str, Make] = {}
    for given in config.inspectors:
        found = load_inspector(given)
        settings = config.parameters.get(given, {})
        known = list(introspection.signature(found).parameters)
        for name in settings:
            if name not in known:
                raise UsageError(
                    f"inspector {found.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}"
                )
        if found.name in makes:
            raise UsageError(f"two of the inspectors are called {found.name!r}; rename one")
        makes[found.name] = partial(found, **settings)
        makes[found.name]()
    return makes


def sites_of(task: Task, config: RunConfig) -> tuple[Site, ...]:
    """Return the sites of a task that were asked for."""
    return tuple(site for site in SITES if site in task.sites and site in (config.sites or SITES))


@dataclass(frozen=True)
class Setting:
    """What all cells of a run depend on."""

    model: LanguageModel
    verbalizer: LanguageModel
    layers: tuple[int, ...]
    config: RunConfig

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, for digests and `run.json`."""
        return {
            "schema": SCHEMA_VERSION,
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "verbalizer": self.verbalizer.name,
            "verbalizer_fingerprint": self.verbalizer.fingerprint,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "layers": list(self.layers),
            "limit": self.config.limit,
            "seed": self.config.seed,
        }


def plan_cells(
    setting: Setting, tasks: Sequence[Task], makes: dict[str, Make], baselines: dict[str, Baseline]
) -> list[Cell]:
    """List the cells in the order of work: what shares activations and fits stands together."""
    cells = []
    for task in tasks:
        for site in sites_of(task, setting.config):
            for name, make in makes.items():
                inspector = make()
                rivals = [
                    b for b in baselines.values() if b.applies_to(inspector.learns_from, frozenset(inspector.reads))
                ]
                for baseline in (None, *rivals):
                    digest = _digest(setting, task, site, inspector, baseline)
                    cells.append(Cell(task, site, name, baseline, digest))
    return cells


def _digest(setting: Setting, task: Task, site: Site, inspector: Inspector, baseline: Baseline | None) -> str:
    rival = asdict(baseline) if baseline else None
    described = {
        "setting": setting.describe(),
        "task": [task.name, task.version, list(task.relations)],
        "site": site,
        "inspector": [inspector.name, inspector.parameters(), _code(type(inspector))],
        "baseline": {**rival, "learns_from": sorted(rival["learns_from"]), "reads": sorted(rival["reads"])}
        if rival
        else None,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _code(method: type[Inspector]) -> str:
    """Return a digest of the file that defines a method: a method that was changed is run again."""
    file = introspection.getsourcefile(method)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""
