"""Representational drift: how the residual stream changes from layer to layer."""

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensbench.explore.analyses.samples import exact

SHARE, TIMES = 0.05, 20.0
"""A coordinate is an outlier if it holds this share of a layer's variance, and so many times its equal part."""
WHOLE, TRIMMED = "all", "without outliers"

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
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).clamp(min=0).flip(0)
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
