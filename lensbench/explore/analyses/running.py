"""`lensbench analyze`: the analyses of one model, their tables and figures in one folder."""

import json
import logging
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.evaluation.journal import VERSIONS
from lensbench.explore.analyses.alignment import make_interventions, stimulus_response
from lensbench.explore.analyses.drift import drift_of_layers, drift_of_pairs, outliers
from lensbench.explore.analyses.lenses import fit_lenses, load_lens
from lensbench.explore.analyses.samples import sample_residuals, short_texts
from lensbench.explore.analyses.updates import update_alignment
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.report.analyses import FIGURES
from lensbench.report.plots import FORMATS, save_figure
from lensbench.utils.layer_spec import parse_layers

LOG = logging.getLogger("lensbench")
INDEX = "analysis.json"


@dataclass(frozen=True)
class AnalysisSettings:
    """What is analysed.

    Attributes:
        tokens: of held-out prose, for drift and for the directions of interventions.
        texts: of 64 tokens, for both alignments.
        layers: as `--layers`.
        inspectors: names of lenses.
        seed: of texts, directions, donors and bootstraps.
    """

    tokens: int = 4096
    texts: int = 32
    layers: str = "all"
    inspectors: tuple[str, ...] = ("logit_lens", "tuned_lens")
    seed: int = 0


@dataclass(frozen=True)
class _Bench:
    """A model, the prose it is looked at on, and what was asked."""

    model: LanguageModel
    corpus: Corpus
    layers: tuple[int, ...]
    settings: AnalysisSettings

    @cached_property
    def sample(self) -> Float[Tensor, "layer token d_model"]:
        """Residuals of the corpus at the layers asked."""
        return sample_residuals(self.corpus, self.settings.tokens, self.layers)


Tables = dict[str, pd.DataFrame]
Facts = dict[str, Any]


def _drift(bench: _Bench) -> tuple[Tables, Facts]:
    values = bench.sample
    if values.shape[1] < 2 * bench.model.d_model:
        LOG.warning(
            "%d positions for covariances of %d coordinates are few; ranks are too low and similarities too high: "
            "give more --tokens",
            *values.shape[1:],
        )
    tables = {
        "drift-layers": drift_of_layers(bench.layers, values),
        "drift-pairs": drift_of_pairs(bench.layers, values),
    }
    return tables, {"positions": values.shape[1], "outliers": list(outliers(values))}


def _alignment(bench: _Bench) -> tuple[Tables, Facts]:
    settings = bench.settings
    lenses = fit_lenses(bench.model, settings.inspectors)
    texts = short_texts(bench.corpus, settings.texts, settings.seed)
    interventions = make_interventions(bench.layers, bench.sample, len(texts), settings.seed)
    table = stimulus_response(bench.model, lenses, texts, interventions, settings.seed)
    parameters = {name: lens.parameters() for name, lens in lenses.items()}
    return {"alignment": table}, {"lenses": parameters, "directions": len(interventions.kinds)}


def _updates(bench: _Bench) -> tuple[Tables, Facts]:
    texts = short_texts(bench.corpus, bench.settings.texts, bench.settings.seed)
    return {"updates": update_alignment(bench.model, texts, bench.layers, bench.settings.seed)}, {}


ANALYSES: Mapping[str, Callable[[_Bench], tuple[Tables, Facts]]] = {
    "drift": _drift,
    "alignment": _alignment,
    "updates": _updates,
}


def check_settings(model: str, settings: AnalysisSettings, out: Path, deepest: int) -> tuple[int, ...]:
    """Check everything that can be checked without the model's weights, and return the layers.

    Raises:
        UsageError: an unknown lens, a layer that the model does not have, or a folder that cannot be written to or
            holds another model's analyses.
    """
    for name in settings.inspectors:
        load_lens(name)
    layers = parse_layers(settings.layers, deepest)
    held = _read(out).get("model", model)
    if held != model:
        raise UsageError(f"--out {out} holds analyses of {held}, now {model}; choose another folder")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
        for folder in made:
            folder.rmdir()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    return layers


def analyse(model: LanguageModel, names: tuple[str, ...], settings: AnalysisSettings, out: Path) -> Tables:
    """Make analyses; write tables, figures and analysis.json into a folder. Each analysis appears there when complete.

    Args:
        model: the model.
        names: of ANALYSES.
        settings: what is analysed.
        out: the folder; what it holds of other analyses of this model stays.

    Returns:
        The tables, by the names of their files.

    Raises:
        UsageError: it holds analyses of other weights.
    """
    held = _read(out)
    if held.get("fingerprint", model.fingerprint) != model.fingerprint:
        raise UsageError(f"--out {out} holds analyses of other weights named {model.name}; choose another folder")
    layers = parse_layers(settings.layers, model.n_layers)
    bench = _Bench(model, Corpus(model, PROSE / "heldout.txt"), layers, settings)
    done: dict[str, Any] = held.get("analyses", {})
    tables: Tables = {}
    for name in names:
        begin = time.perf_counter()
        LOG.info("%s ...", name)
        found, facts = ANALYSES[name](bench)
        seconds = round(time.perf_counter() - begin, 1)
        LOG.info("%s: %.0f s", name, seconds)
        with _staged(out) as folder:
            files = _write(found, model.name, folder)
            done[name] = {"settings": asdict(settings), **facts, "seconds": seconds, "files": files}
            content = {**_of(model), "analyses": done}
            (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        tables |= found
    return tables


def _write(tables: Tables, title: str, folder: Path) -> list[str]:
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        save_figure(FIGURES[name](table, title), [folder / f"{name}{suffix}" for suffix in FORMATS])
    return sorted(path.name for path in folder.iterdir())


def _of(model: LanguageModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
    }


def _read(out: Path) -> dict[str, Any]:
    path = out / INDEX
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{path} cannot be read; remove it, or choose another --out") from None
    return content


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Let files be written beside a folder, and move them into it when all are complete; the index comes last."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".{uuid.uuid4().hex}.partial"
    folder.mkdir()
    try:
        yield folder
        for path in sorted(folder.iterdir(), key=lambda path: path.name == INDEX):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
