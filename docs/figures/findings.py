"""Draw the figures of docs/findings.md from the runs of the study: python docs/figures/findings.py [FOLDER]."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lensbench.report.style import OKABE_ITO, new_figure, plot_style, save_figure
from lensbench.report.wording import readable
from lensbench.results.bands import band_of_sum
from lensbench.results.claim_rules import Claim
from lensbench.results.claim_values import StudyRun, values_of
from lensbench.runs.claims import read_study

HERE = Path(__file__).parent
Curve = tuple[str, str, Mapping[str, Any]]
"""Label, run, and the value as a rule of a claim has it."""
SMOLLM, GEMMA = "SmolLM2-135M", "Gemma 3 270M"
WHOLE = {"layers": (0.0, 1.0), "each": True}


def of(method: str, baseline: str = "none", **more: Any) -> Mapping[str, Any]:
    """Return the value of a method, or of one of its baselines, at every layer."""
    return {"method": method, "baseline": baseline, **WHOLE, **more}


def effect(method: str, attempt: str) -> Mapping[str, Any]:
    """Return the effect of an intervention along what a method reads."""
    return of(method, "intervention", of="effect", attempts=(attempt,))


def named(method: str) -> str:
    """Return the name of a method as the text has it: Patchscope and Jacobian are proper names."""
    return readable(method).replace("patchscope", "Patchscope").replace("jacobian", "Jacobian")


LENSES = ("logit_lens", "tuned_lens")
AT_SUBJECT = ("patchscope", "probe", "tuned_lens")
WHOLE_NAME = {"relations": ("kind_by_token",)}
SAID_EARLIER = {"relations": ("held_in_mind", "told_before", "which_of_two"), "site": "subject"}
FIGURES: Mapping[str, tuple[str, Sequence[tuple[str, Sequence[Curve]]]]] = {
    "finding-lenses": ("Share of positions where the lens says the model's next token", [
        (SMOLLM, [(named(name), "prose", of(name)) for name in (*LENSES, "jacobian_lens")]),
        (GEMMA, [(named(name), "gemma-prose", of(name)) for name in LENSES]),
    ]),
    "finding-readers": ("Accuracy at the subject (chance 0, perfect 1)", [
        (title, [
            *((named(name), run, of(name, site="subject")) for name in AT_SUBJECT),
            ("the name in text", run, of("patchscope", "input_only", site="subject")),
            ("random weights", run, of("probe", "random_model", site="subject")),
        ]) for title, run in ((SMOLLM, "facts"), (GEMMA, "gemma-facts"))
    ]),
    "finding-names": ("Kind of thing, read from a name's last token", [
        (title, [
            ("whole name", run, of("patchscope", missing=0, **WHOLE_NAME)),
            ("one token missing", run, of("patchscope", missing=1, **WHOLE_NAME)),
            ("last token alone", run, of("patchscope", "splice", missing=0, **WHOLE_NAME)),
            ("the name in text", run, of("patchscope", "input_only", missing=0, **WHOLE_NAME)),
        ]) for title, run in ((SMOLLM, "entities"), (GEMMA, "gemma-entities"))
    ]),
    "finding-unsaid": ("What was said earlier, read where the text does not show it (chance 0, perfect 1)", [
        (title, [
            ("probe", run, of("probe", **SAID_EARLIER)),
            ("logit lens", run, of("logit_lens", **SAID_EARLIER)),
            ("Jacobian lens", run, of("jacobian_lens", **SAID_EARLIER)),
            ("probe, random weights", run, of("probe", "random_model", **SAID_EARLIER)),
            ("probe, another answer", run, of("probe", "matched_twin", **SAID_EARLIER)),
            ("the whole text", run, of("probe", "input_only", **SAID_EARLIER)),
        ]) for title, run in ((SMOLLM, "unsaid"), (GEMMA, "gemma-unsaid"))
    ]),
    "finding-used": ("Change of the log-odds when another item's reading is put in (nats)", [
        ("along what is read", [
            ("whole residual", "used", effect("probe", "interchange")),
            ("difference of means", "used", effect("mass_mean_probe", "along")),
            ("probe", "used", effect("probe", "along")),
            ("affine map", "used", effect("attribute_lens", "along")),
            ("Jacobian lens", "used", effect("jacobian_lens", "along")),
            ("tuned lens", "used", effect("tuned_lens", "along")),
            ("a random direction", "used", effect("probe", "random_direction")),
        ]),
    ]),
    "finding-planted": ("Accuracy on facts planted at layer 8 (chance 0, perfect 1)", [
        ("read by the model without them", [
            ("Patchscope", "planted", of("patchscope")),
            ("probe", "planted", of("probe")),
            ("logit lens", "planted", of("logit_lens")),
            ("Patchscope, unplanted", "planted", of("patchscope", "unplanted")),
        ]),
        ("read by a model with other facts", [
            ("the target's fact", "twins", of("patchscope", relations=("city",))),
            ("the verbalizer's fact", "twins", of("patchscope", relations=("city_twin",))),
        ]),
    ]),
}  # fmt: skip


def draw(name: str, folder: Path) -> Figure:
    """Draw one of the figures."""
    said, panels = FIGURES[name]
    with plot_style():
        figure = new_figure((3.4 * len(panels), 3.3))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, curves) in zip(axes, panels, strict=True):
            for place, (label, run, value) in enumerate(curves):
                _curve(axis, folder, run, value, label, OKABE_ITO[place % len(OKABE_ITO)], "-" if place < 4 else "--")
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("Layer")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axes[0].set_ylabel(textwrap.fill(said, 38), fontsize=8)
    return figure


def _curve(axis: Axes, folder: Path, run: str, value: Mapping[str, Any], label: str, colour: str, dash: str) -> None:
    claim = Claim(says="", source="", runs=(run,), holds_if=("it > 0",), values={"it": value})  # type: ignore[dict-item]
    found = values_of(claim, run, lambda name: _study(folder / name))["it"]
    score = value.get("of") is None
    band, _ = band_of_sum([(1.0, found.values, found.subjects, found.relations)], found.ends, score=score)
    layers = [layer for layer in found.layers if layer >= 0]
    if not layers:  # a text baseline has no layer
        axis.axhline(float(band.estimate[0]), color="0.4", linestyle=":", label=label)
        return
    axis.plot(layers, band.estimate, dash, color=colour, label=label, linewidth=1.3)
    axis.fill_between(layers, band.low, band.high, color=colour, alpha=0.13, linewidth=0)


@cache
def _study(path: Path) -> StudyRun:
    return read_study(path)


def main(folder: Path) -> None:
    """Draw all figures."""
    for name in FIGURES:
        save_figure(draw(name, folder), [HERE / f"{name}.png"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "reports/reference"))
