"""`lensbench analyze`: representational drift, and the analyses of one model with tables and figures in one folder."""

import json
import logging
import os
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
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.evaluation.journal import VERSIONS
from lensbench.explore.alignment import (
    exact,
    make_interventions,
    mean_over_texts,
    sample_residuals,
    short_texts,
    stimulus_response,
    update_cosines,
)
from lensbench.explore.prompt import fit_lenses, load_lens
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.precision import in_float64
from lensbench.models.sources import read_table
from lensbench.report.analyses import FIGURES
from lensbench.report.style import FORMATS, save_figure
from lensbench.utils.layer_spec import parse_layers

SHARE, TIMES = 0.05, 20.0
"""A coordinate is an outlier if it holds this share of a layer's variance, and so many times its equal part."""
WHOLE, TRIMMED = "all", "without outliers"
LOG = logging.getLogger("lensbench")
INDEX = "analysis.json"
PER_TEXT = "updates-texts"
"""The table of the cosines of every text."""


Values = Float[Tensor, "layer token d_model"]


def outliers(values: Values) -> tuple[int, ...]:
    """Return the coordinates of huge variance: over 5 % of the total, and over 20 times 1 / d_model, at some layer.

    Such coordinates (Kovaleva et al. 2021; Timkey & van Schijndel 2021) can decide every similarity by themselves.
    """
    variance = exact(values).var(1)
    share = variance / variance.sum(1, keepdim=True)
    found = (share > max(SHARE, TIMES / values.shape[2])).any(0)
    return tuple(found.nonzero().flatten().tolist())


def drift_of_layers(layers: tuple[int, ...], values: Values) -> pd.DataFrame:
    """Describe the covariance S_l of the residual stream at each layer.

    Columns: coordinates ("all", and "without outliers" where there are any), layer; norm: mean of |h|; variance:
    tr S; participation_ratio: (tr S)^2 / tr S^2; effective_rank: exp of the entropy of S's normalised eigenvalues (Roy
    & Vetterli 2007); top1, top10: share of the variance along the first and the first ten principal components;
    distance: |R_l - R_last|_F / |R_last|_F with R = S / tr S, to the deepest of the layers.
    """
    rows = []
    whole = exact(values)
    for name, kept in _variants(whole):
        some = whole[:, :, kept]
        covariances = _covariances(some)
        last = covariances[-1] / covariances[-1].trace()
        for layer, h, covariance in zip(layers, some, covariances, strict=True):
            distance = float((covariance / covariance.trace() - last).norm() / last.norm())
            row = {"coordinates": name, "layer": layer, "norm": float(h.norm(dim=1).mean())}
            rows.append({**row, **_spectrum(covariance), "distance": distance})
    return pd.DataFrame(rows)


def drift_of_pairs(layers: tuple[int, ...], values: Values) -> pd.DataFrame:
    """Compare the residual streams of each pair of layers.

    Columns: coordinates, layer, other; cosine: mean over tokens of cos(h_i, h_j); cosine_centred: the same after
    each layer's mean is subtracted; cka: linear CKA |X_i^T X_j|_F^2 / (|X_i^T X_i|_F |X_j^T X_j|_F) of the centred
    residuals (Kornblith et al. 2019), which no rotation or scale changes; covariance: tr(S_i S_j) / (|S_i|_F |S_j|_F)
    (Belrose et al. 2023), which a rotation does change.
    """
    whole = exact(values)
    variants = _variants(whole)
    shared = _cka(whole - whole.mean(1, keepdim=True), torch.stack([kept for _, kept in variants]))
    frames = []
    for (name, kept), cka in zip(variants, shared, strict=True):
        some = whole[:, :, kept]
        measures = {
            "cosine": _mean_cosines(some),
            "cosine_centred": _mean_cosines(some - some.mean(1, keepdim=True)),
            "cka": cka,
            "covariance": _cosines(_covariances(some).flatten(1)),
        }
        one, other = (axis.flatten().tolist() for axis in torch.meshgrid(*2 * [torch.tensor(layers)], indexing="ij"))
        columns = {key: matrix.flatten().tolist() for key, matrix in measures.items()}
        frames.append(pd.DataFrame({"coordinates": name, "layer": one, "other": other, **columns}))
    return pd.concat(frames, ignore_index=True)


def _variants(values: Values) -> list[tuple[str, Bool[Tensor, " d_model"]]]:
    """Return which coordinates are kept: all, and all but the outliers where there are any."""
    every = torch.ones(values.shape[2], dtype=torch.bool, device=values.device)
    kept = every.clone()
    kept[list(outliers(values))] = False
    return [(WHOLE, every)] if kept.all() else [(WHOLE, every), (TRIMMED, kept)]


def _covariances(values: Tensor) -> Float[Tensor, "layer d_model d_model"]:
    centred = values - values.mean(1, keepdim=True)
    return torch.stack([one.T @ one / len(one) for one in centred])


def _spectrum(covariance: Tensor) -> dict[str, float]:
    eigenvalues = torch.linalg.eigvalsh(in_float64(covariance)).clamp(min=0).flip(0)
    share = eigenvalues / eigenvalues.sum()
    entropy = -torch.xlogy(share, share).sum()
    return {
        "variance": float(eigenvalues.sum()),
        "participation_ratio": float(1 / share.square().sum()),
        "effective_rank": float(entropy.exp()),
        "top1": float(share[0]),
        "top10": float(share[:10].sum()),
    }


def _cosines(rows: Float[Tensor, "layer entry"]) -> Float[Tensor, "layer layer"]:
    unit = torch.nn.functional.normalize(rows, dim=1)
    return unit @ unit.T


def _mean_cosines(values: Tensor) -> Float[Tensor, "layer layer"]:
    """Mean over tokens of the cosine of each pair: one product of all layers, each token's residual of length 1."""
    unit = torch.nn.functional.normalize(values, dim=2).flatten(1)
    return unit @ unit.T / values.shape[1]


def _cka(
    centred: Float[Tensor, "layer token d_model"], variants: Bool[Tensor, "variant d_model"]
) -> Float[Tensor, "variant layer layer"]:
    """Return CKA with all coordinates or some: products of two layers are made once, and some coordinates summed."""
    count = len(centred)
    weights = variants.to(centred)
    squares = centred.new_zeros(len(variants), count, count)
    for i in range(count):
        for j in range(i, count):
            product = (centred[i].T @ centred[j]).square()
            squares[:, i, j] = squares[:, j, i] = torch.einsum("va,ab,vb->v", weights, product, weights)
    own = squares.diagonal(dim1=1, dim2=2).sqrt()
    return squares / (own[:, :, None] * own[:, None])


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
    """A model, the prose for the analysis, and its settings."""

    model: LanguageModel
    corpus: Corpus
    layers: tuple[int, ...]
    settings: AnalysisSettings

    @cached_property
    def sample(self) -> Float[Tensor, "layer token d_model"]:
        """Residuals of the corpus at the selected layers."""
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
    cosines = update_cosines(bench.model, texts, bench.layers)
    return {"updates": mean_over_texts(cosines, bench.settings.seed), PER_TEXT: cosines}, {}


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
    analyzed = _read_index(out).get("model", model)
    if analyzed != model:
        raise UsageError(f"--out {out} holds analyses of {analyzed}, now {model}; choose another folder")
    place = out.absolute()
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} cannot be written to; choose another folder")
    return layers


def analyze(model: LanguageModel, names: tuple[str, ...], settings: AnalysisSettings, out: Path) -> Tables:
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
    index = _read_index(out)
    if index.get("fingerprint", model.fingerprint) != model.fingerprint:
        raise UsageError(f"--out {out} holds analyses of other weights named {model.name}; choose another folder")
    layers = parse_layers(settings.layers, model.n_layers)
    bench = _Bench(model, Corpus(model, PROSE / "heldout.txt"), layers, settings)
    done: dict[str, Any] = index.get("analyses", {})
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
            content = {**_described(model), "analyses": done}
            (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        tables |= found
    return tables


def _write(tables: Tables, title: str, folder: Path) -> list[str]:
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        if name in FIGURES:
            save_figure(FIGURES[name](table, title), [folder / f"{name}{suffix}" for suffix in FORMATS])
    return sorted(path.name for path in folder.iterdir())


def _described(model: LanguageModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "n_layers": model.n_layers,
        "fingerprint": model.fingerprint,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
    }


def _read_index(out: Path) -> dict[str, Any]:
    path = out / INDEX
    return read_table(path, "remove it, or choose another --out", UsageError) if path.exists() else {}


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
