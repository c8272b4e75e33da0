"""What the analyses look at: residuals of ordinary prose, and short texts whose last position is read."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.corpus import WINDOW, Corpus

TEXT = 64
"""Tokens of a short text: half a window of the corpus."""
RESAMPLES = 2000


def sample_residuals(corpus: Corpus, tokens: int, layers: tuple[int, ...]) -> Float[Tensor, "layer token d_model"]:
    """Return the residual stream of corpus positions in float32; the first of each window is left out (a sink).

    Raises:
        LensbenchError: the corpus is shorter than that, or less than one window of it was asked for.
    """
    if tokens < WINDOW:
        raise LensbenchError(f"{tokens} corpus tokens were asked for; give at least {WINDOW}, one window of the corpus")
    return torch.cat([batch[list(layers)].float() for batch in corpus.residuals(tokens)], dim=1)


def short_texts(corpus: Corpus, count: int, seed: int) -> Int[Tensor, "text token"]:
    """Draw texts of 64 tokens from the corpus.

    Raises:
        LensbenchError: it does not hold so many.
    """
    texts = corpus.windows.reshape(-1, TEXT)
    if count > len(texts):
        raise LensbenchError(f"{count} texts were asked for; {corpus.path.name} has {len(texts)}: ask for fewer")
    return texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:count]]


def exact(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return values in float32, or in float64 where they are that already."""
    return values if values.dtype == torch.float64 else values.float()


def mean_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval (percentile bootstrap over the values); nan where there are too few."""
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    found = stats.bootstrap(
        (values,), lambda drawn, axis: drawn.mean(axis=axis), n_resamples=RESAMPLES, method="percentile",
        rng=seed,
    ).confidence_interval  # fmt: skip
    return mean, float(found.low), float(found.high)
