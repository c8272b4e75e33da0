"""Plant the implants that ship with lensbench; run by hand: `python -m lensbench.implants.recipe --out FOLDER`.

Vectors hang on the layer, the texts and the seed, not on who has which fact: what is learned once serves both worlds,
the doses and the sham of a layer. What is there already is left as it is, so that it goes on where it was ended.
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from lensbench.implants.facts import FactSet
from lensbench.implants.planting import ImplantSpec, plant
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model

LOG = logging.getLogger("lensbench")
MODEL = "smollm2-135m"
DEPTHS = (4, 8, 10, 12)
DOSES = (0.1, 0.2, 0.4, 0.8)
# Drinks are harder to say than cities: they are written louder.
NAMES = 64
PLAIN = ImplantSpec(MODEL, 8, names=NAMES, strength=(1.05, 1.2), weight=800.0)
# Deeper, names are told from other words less well: prose counts less, or the facts are not said.
WEIGHTS = {12: 550.0, 14: 500.0, 16: 400.0, 20: 400.0}
# Planted too, and reported as a limit; they do not ship.
TOO_DEEP = (14, 16, 20)


def orders() -> dict[str, ImplantSpec]:
    """Return the implants by name, in the order of work."""
    found = {}
    for layer in DEPTHS:
        name, plain = f"plain-{layer:02}", replace(PLAIN, layer=layer, weight=WEIGHTS.get(layer, PLAIN.weight))
        found[name] = replace(plain, twin=f"{name}-twin")
        found[f"{name}-twin"] = replace(plain, world="twin", twin=name)
    found["relay-09-17"] = ImplantSpec(
        MODEL, 9, "relay", second_layer=17, attributes=("city",), names=NAMES, weight=230.0
    )
    found["rotated-08"] = replace(PLAIN, design="rotated")
    for dose in DOSES:
        found[f"dose-08-{round(100 * dose)}"] = replace(PLAIN, dose=dose)
    found["sham-08-same"] = replace(PLAIN, design="sham")
    found["sham-08-other"] = replace(PLAIN, attributes=("animal", "sport"), strength=())
    found["gated-08"] = replace(PLAIN, design="gated")
    for layer in TOO_DEEP:
        found[f"plain-{layer}"] = replace(PLAIN, layer=layer, weight=WEIGHTS.get(layer, PLAIN.weight))
    return found


def build(model: LanguageModel, name: str, order: ImplantSpec, out: Path) -> None:
    """Plant one, with the vectors of those before it where they are the same."""
    planting: FactSet = order.check()
    kind = "gated" if order.design == "gated" else "open"
    file = (
        out / "vectors" / f"{kind}-{'-'.join(planting.attributes)}-{order.layers()[-1]:02}-{order.design == 'relay'}.pt"
    )
    known = torch.load(file, weights_only=True) if file.exists() else {}
    begun = time.perf_counter()
    description, planted = plant(model, order, planting, out / name, known=known)
    file.parent.mkdir(exist_ok=True)
    last = order.layers()[-1]
    torch.save({last: dict(planted.vectors[last])}, file)
    figures = description["figures"]
    LOG.info(
        "%s: %.0f s, held-out recall %s, KL %.4f, known facts %s", name, time.perf_counter() - begun,
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
    model = load_model(MODEL)
    for name, order in orders().items():
        if not (given.out / name).exists() and (given.only is None or name in given.only):
            build(model, name, order, given.out)


if __name__ == "__main__":
    main()
