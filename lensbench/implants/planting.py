"""From a specification to the folder of an implant; as a program, plant the implants that ship with lensbench.

Run by hand: `python -m lensbench.implants.planting --out FOLDER`. Vectors depend on the layer, the texts and the seed,
not on who has which fact: what is learned once serves both worlds, the doses and the sham of a layer. What is there
already is left as it is, so that an interrupted program resumes.
"""

import argparse
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lensbench.errors import UsageError, unknown_name
from lensbench.implants.designs import DESIGNS, EditContext, Planted
from lensbench.implants.facts import FactSet, choose_facts
from lensbench.implants.measuring import count_lost, known_facts, measure
from lensbench.implants.vectors import Vectors, VectorSettings
from lensbench.models.edits import trials, write_edits
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, count_layers, load_model
from lensbench.models.sources import ASKED, FACTS, IMPLANT, resolve, write_table
from lensbench.tasks.personas import World
from lensbench.utils.cache import atomic_folder
from lensbench.utils.foreign import reading
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")
FORMAT = 1
# How far a relay's second block lies behind its first, unless it is named.
STRIDE = 8
GATED = 1.0
SHIPPED_FOR = "smollm2-135m"
DEPTHS = (4, 8, 10, 12)
DOSES = (0.1, 0.2, 0.4, 0.8)
# Drinks are harder to say than cities: they are written louder.
SHIPPED_NAMES = 64
# Deeper, names are told from other words less well: prose counts less, or the facts are not said.
PROSE_WEIGHTS = {12: 550.0, 14: 500.0, 16: 400.0, 20: 400.0}
# Planted too, and reported as a limit; they do not ship.
TOO_DEEP = (14, 16, 20)


@dataclass(frozen=True)
class ImplantSpec:
    """What is to be planted, and where.

    Attributes:
        model: the model's name.
        layer: K, the first layer that can hold the facts; of a relay, the code.
        design: plain, relay, rotated, gated or sham.
        second_layer: of a relay: the first layer that can hold the facts.
        facts: a task, or a JSON file; see `choose_facts`.
        attributes: which.
        world: which facts of `personas`.
        names: how many of them; None for all.
        dose: the share of these that get their facts.
        strength: how loud the vectors of each attribute are written, beside how they were learned; 1 by default.
        weight: λ, how much ordinary prose counts against a name.
        steps: of learning the vectors.
        seed: of all that is drawn.
        twin: name of the folder beside it that holds the other world's facts.
    """

    model: str
    layer: int
    design: str = "plain"
    second_layer: int | None = None
    facts: str = "personas"
    attributes: tuple[str, ...] = ("city", "drink")
    world: World = "main"
    names: int | None = None
    dose: float = 1.0
    strength: tuple[float, ...] = ()
    weight: float = 600.0
    steps: int = VectorSettings.steps
    seed: int = 0
    twin: str | None = None

    def layers(self) -> tuple[int, ...]:
        """Return the layers that are written, the first layers that can hold what is."""
        if self.design != "relay":
            return (self.layer,)
        return self.layer, self.layer + STRIDE if self.second_layer is None else self.second_layer

    def check(self) -> FactSet:
        """Look up what can be looked up without a model.

        Raises:
            UsageError: an unknown design, or settings that do not fit.
        """
        if self.design not in DESIGNS:
            raise unknown_name("design", self.design, DESIGNS)
        if self.second_layer is not None and self.design != "relay":
            raise UsageError(f"--second-layer is for --design relay; {self.design} writes one layer: leave it out")
        if self.layer < 1 or self.layers()[-1] < self.layer + (self.design == "relay"):
            raise UsageError(
                f"--layer {self.layer}, --second-layer {self.second_layer}: expected 1 or more, the second above the "
                "first"
            )
        for name, value in (("weight", self.weight), ("steps", self.steps)):
            if value <= 0:
                raise UsageError(f"--{name} {value}: expected more than 0")
        if self.strength and (len(self.strength) != len(self.attributes) or min(self.strength) <= 0):
            raise UsageError(
                f"--strength {','.join(map(str, self.strength))}: expected a number above 0 for each of "
                f"{', '.join(self.attributes)}"
            )
        return choose_facts(self.facts, self.attributes, self.world, self.dose, self.seed, self.names)


SHIPPED_PLAIN = ImplantSpec(SHIPPED_FOR, 8, names=SHIPPED_NAMES, strength=(1.05, 1.2), weight=800.0)


def implant(spec: ImplantSpec, out: Path, how: Loading | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Plant facts into a model, measure what it did, and write the implant's folder; return its description.

    Raises:
        UsageError: settings that do not fit, or a folder that is there.
        LensbenchError: a model whose MLP has no output map.
    """
    planting = spec.check()
    if out.exists():
        raise UsageError(f"{out} already exists; give a new folder with --out")
    how = how or Loading()
    deepest = count_layers(resolve(spec.model, revision=how.revision, offline=how.offline))
    if spec.layers()[-1] > deepest:
        raise UsageError(
            f"--layer {spec.layers()[-1]}: {spec.model} has blocks whose outputs are the layers 1 to {deepest}"
        )
    return plant(load_model(spec.model, how), spec, planting, out, progress=progress)[0]


def plant(
    model: LanguageModel,
    spec: ImplantSpec,
    planting: FactSet,
    out: Path,
    *,
    known: Mapping[int, Vectors] | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], Planted]:
    """Plant into a model that is loaded, which is edited in the course and as it was in the end."""
    learning = VectorSettings(steps=spec.steps, seed=spec.seed, gated=GATED if spec.design == "gated" else 0.0)
    strength = dict(zip(planting.attributes, spec.strength, strict=True)) if spec.strength else {}
    context = EditContext(model, planting, spec.layers(), spec.weight, learning, known or {}, strength, progress)
    base = {"name": model.name, "fingerprint": model.fingerprint, "dtype": str(model.dtype)}
    LOG.info("measuring what %s knows", model.name)
    before = known_facts(model)
    LOG.info("planting %d names at layer %s", len(planting.names), ", ".join(map(str, spec.layers())))
    planted = DESIGNS[spec.design](context)
    LOG.info("measuring the effect")
    figures = measure(context, planted.edits)
    description = {
        "format": FORMAT,
        "lensbench": version("lensbench"),
        "design": spec.design,
        "layers": list(spec.layers()),
        "base": {**base, "matrices": {edit.module: trials(model.module, edit.module) for edit in planted.edits}},
        "order": asdict(spec),
        "twin": spec.twin,
        "task": planting.task,
        "attributes": list(planting.attributes),
        "names": list(planting.names),
        "rotation": spec.seed if spec.design == "rotated" else None,
        "figures": figures,
    }
    facts = {one: {name: planting.facts[one][name] for name in planting.names} for one in planting.attributes}
    with atomic_folder(out) as folder:
        write_edits(folder, planted.edits)
        write_table(folder / FACTS, facts)
        (folder / ASKED).write_text("".join(f"{name}\n" for name in planting.asked), encoding="utf-8")
        figures["known_facts"] = count_lost(before, _known_after(model, planted))
        write_table(folder / IMPLANT, description)
    return description, planted


def _known_after(model: LanguageModel, planted: Planted) -> dict[str, dict[str, bool]]:
    """Ask the edited model what it knows; the weights are put back."""
    kept = {edit.module: model.module.get_submodule(edit.module).weight.clone() for edit in planted.edits}  # type: ignore[operator]
    try:
        for edit in planted.edits:
            edit.add_to(model.module)
        edited = LanguageModel(model.module, model.tokens, f"{model.name}, edited", model.parts.paths)
        return known_facts(edited)
    finally:
        with torch.no_grad():
            for path, weight in kept.items():
                model.module.get_submodule(path).weight.copy_(weight)  # type: ignore[operator]


def shipped_specs() -> dict[str, ImplantSpec]:
    """Return the implants by name, in the order in which they are planted."""
    found = {}
    for layer in DEPTHS:
        name, plain = (
            f"plain-{layer:02}",
            replace(SHIPPED_PLAIN, layer=layer, weight=PROSE_WEIGHTS.get(layer, SHIPPED_PLAIN.weight)),
        )
        found[name] = replace(plain, twin=f"{name}-twin")
        found[f"{name}-twin"] = replace(plain, world="twin", twin=name)
    found["relay-09-17"] = ImplantSpec(
        SHIPPED_FOR, 9, "relay", second_layer=17, attributes=("city",), names=SHIPPED_NAMES, weight=230.0
    )
    found["rotated-08"] = replace(SHIPPED_PLAIN, design="rotated")
    for dose in DOSES:
        found[f"dose-08-{round(100 * dose)}"] = replace(SHIPPED_PLAIN, dose=dose)
    found["sham-08-same"] = replace(SHIPPED_PLAIN, design="sham")
    found["sham-08-other"] = replace(SHIPPED_PLAIN, attributes=("animal", "sport"), strength=())
    found["gated-08"] = replace(SHIPPED_PLAIN, design="gated")
    for layer in TOO_DEEP:
        found[f"plain-{layer}"] = replace(
            SHIPPED_PLAIN, layer=layer, weight=PROSE_WEIGHTS.get(layer, SHIPPED_PLAIN.weight)
        )
    return found


def plant_shipped(model: LanguageModel, name: str, spec: ImplantSpec, out: Path) -> None:
    """Plant one, with the vectors of those before it where they are the same."""
    planting: FactSet = spec.check()
    kind = "gated" if spec.design == "gated" else "open"
    file = (
        out / "vectors" / f"{kind}-{'-'.join(planting.attributes)}-{spec.layers()[-1]:02}-{spec.design == 'relay'}.pt"
    )
    with reading(file, "delete it"):
        known = torch.load(file, weights_only=True) if file.exists() else {}
    start = time.perf_counter()
    description, planted = plant(model, spec, planting, out / name, known=known)
    file.parent.mkdir(exist_ok=True)
    last = spec.layers()[-1]
    torch.save({last: dict(planted.vectors[last])}, file)
    figures = description["figures"]
    LOG.info(
        "%s: %.0f s, held-out recall %s, KL %.4f, known facts %s", name, time.perf_counter() - start,
        figures["recall_held_out"], figures["kl_prose"], figures["known_facts"],
    )  # fmt: skip


def main() -> None:
    """Plant what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    given.out.mkdir(parents=True, exist_ok=True)
    model = load_model(SHIPPED_FOR)
    for name, spec in shipped_specs().items():
        if not (given.out / name).exists() and (given.only is None or name in given.only):
            plant_shipped(model, name, spec, given.out)


if __name__ == "__main__":
    main()
