"""What a calibration tries: a run on each of some implants."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.evaluation.config import RunConfig
from lensbench.models.sources import ASKED, IMPLANT, read_table, shipped_implants, split_edits, with_edit
from lensbench.tasks.personas import NEVER

# Every so many layers is read, and those around the layers that were written.
STRIDE, AROUND = 4, 1


@dataclass(frozen=True)
class Trial:
    """One implant, and the relations that are evaluated on it.

    Attributes:
        name: of the implant.
        folder: where it lies.
        base: the unedited model, which is the verbalizer too.
        description: what `implant.json` says.
    """

    name: str
    folder: Path
    base: str
    description: dict[str, Any]

    @property
    def design(self) -> str:
        """How it was planted."""
        return str(self.description["design"])

    @property
    def layers(self) -> tuple[int, ...]:
        """The first layers that can hold what was written."""
        return tuple(self.description["layers"])

    @property
    def dose(self) -> float:
        """The share of names that got their facts."""
        return float(self.description["order"]["dose"])

    @property
    def world(self) -> str:
        """Whose facts they got."""
        return str(self.description["order"]["world"])

    @property
    def kind(self) -> str:
        """What it is for: plain, relay, rotated, gated, dose, or sham (also where another attribute was planted)."""
        if self.design == "plain" and self.asked not in self.description["attributes"]:
            return "sham"
        return "dose" if self.dose < 1 else self.design

    @property
    def model(self) -> str:
        """How the planted model is named."""
        return with_edit(self.base, self.folder)

    @property
    def asked(self) -> str:
        """The attribute that methods must read."""
        return "city"

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations that are evaluated; those about names without a planted fact come last."""
        own = [f"{one}_twin" if self.world == "twin" else one for one in self.description["attributes"]]
        if self.kind == "gated":
            return tuple(own)
        first = f"{self.asked}_twin" if self.world == "twin" else self.asked
        never = (f"{self.asked}{NEVER}",) if self.kind == "plain" and self.world == "main" else ()
        return (first, *never)

    def read(self, n_layers: int) -> str:
        """Return the layers that are read."""
        near = {layer + step for layer in self.layers for step in range(-AROUND, AROUND + 1)}
        return ",".join(map(str, sorted({one for one in {*range(0, n_layers, STRIDE), *near, n_layers} if one >= 0})))

    def config(self, settings: dict[str, Any], n_layers: int) -> RunConfig:
        """Return the run's configuration."""
        task = self.description["task"]
        return RunConfig.model_validate(
            {
                "model": self.model,
                "verbalizer": self.base,
                "tasks": [f"{task}/{relation}" for relation in self.relations],
                "sites": ["subject"],
                "subjects": self.folder / ASKED,
                "layers": self.read(n_layers),
                **settings,
            }
        )


def find_trials(base: str, names: Sequence[str] | None, quick: bool) -> list[Trial]:
    """Return the trials of these implants, shipped ones or folders.

    Args:
        base: the model that they were planted in.
        names: of implants that ship for it, or folders; None for all that ship, or a few.
        quick: whether a few will do where none are named: the shallowest two with facts, and a sham.

    Raises:
        UsageError: no implant ships for the model, or none of that name.
        LensbenchError: a folder that is damaged.
    """
    shipped = shipped_implants(base)
    if names is None and not shipped:
        raise UsageError(
            f"no implants ship for {base}; make some with `lensbench implant --model {base}`, and name their folders "
            "with --implants"
        )
    every = [_trial(base, name) for name in (shipped if names is None else names)]
    if names is not None or not quick:
        return every
    plain = [one for one in every if one.kind == "plain" and one.world == "main"][:2]
    return [*plain, *[one for one in every if one.kind == "sham"][:1]]


def _trial(base: str, name: str) -> Trial:
    shipped = shipped_implants(base)
    if name not in shipped and not Path(name).is_dir():
        raise unknown_name("implant", name, shipped, "or give the folder of one")
    _, (folder,) = split_edits(f"{base}+{name}")
    trial = Trial(folder.name, folder, base, read_table(folder / IMPLANT))
    try:
        _ = trial.relations, trial.layers, trial.dose
    except (KeyError, TypeError, ValueError) as error:
        raise LensbenchError(f"{folder / IMPLANT} is damaged ({error!r}); plant it again") from None
    return trial


def of_kind(trials: Iterable[Trial], *kinds: str) -> list[Trial]:
    """Return the trials of these kinds."""
    return [trial for trial in trials if trial.kind in kinds]
