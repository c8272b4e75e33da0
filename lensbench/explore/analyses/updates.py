"""Do the blocks descend the loss? The update of each block beside the gradient there."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.explore.analyses.samples import exact, mean_interval
from lensbench.models.gradients import loss_gradients
from lensbench.models.language_model import LanguageModel

LOSSES = ("next token", "own top token")
EVERY = 4
"""Every fourth position is read; the first ones, attention sinks among them, are not."""


def update_alignment(
    model: LanguageModel, texts: Int[Tensor, "text token"], layers: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Return the cosine between each block's update and the direction of steepest descent.

    At layer l it is cos(h_{l+1} - h_l, -dL/dh_l) at each fourth position of each text (Jastrzebski et al. 2018;
    Belrose et al. 2023), L being the sum of the text's cross-entropies: of the tokens that follow ("next token"), or of
    those that the model itself finds most likely ("own top token").

    Columns: loss, layer (l: before the block), cosine with low and high; control with control_low and control_high:
    the same update with the gradients at the same position of all other texts; update: mean of |h_{l+1} - h_l| /
    |h_l|; nats: mean of the cross-entropy; texts, positions. Means over positions, then over texts, with 95 % bootstrap
    intervals over texts, each layer by itself.

    Args:
        model: the model.
        texts: of one length; the model sees all but the last token.
        layers: the layers asked; the last layer has no update, and no row.
        seed: of the bootstrap.
    """

    def goals(rows: slice, logits: Tensor) -> Tensor:
        return torch.stack([texts[rows, 1:].to(logits.device), logits.argmax(2)])

    places = torch.arange(EVERY, texts.shape[1] - 1, EVERY)
    found = loss_gradients(model, texts[:, :-1], goals, places)
    rows = []
    for name, gradients, losses in zip(LOSSES, found.gradients, found.losses, strict=True):
        for layer in (layer for layer in layers if layer < model.n_layers):
            h, after = exact(found.residuals[layer]), exact(found.residuals[layer + 1])
            size = float(((after - h).norm(dim=2) / h.norm(dim=2)).mean())
            row = {"loss": name, "layer": layer, **_beside(after - h, -exact(gradients[layer]), seed)}
            counts = {"texts": len(h), "positions": len(h) * h.shape[1]}
            rows.append({**row, "update": size, "nats": float(losses.mean()), **counts})
    return pd.DataFrame(rows)


def _beside(
    updates: Float[Tensor, "text place d_model"], descents: Float[Tensor, "text place d_model"], seed: int
) -> dict[str, float]:
    """Return the mean cosine of the pairs, and of each update with the descents of all other texts."""
    normalise = torch.nn.functional.normalize
    cosines = torch.einsum("tpd,upd->tu", normalise(updates, dim=2), normalise(descents, dim=2)) / updates.shape[1]
    table = cosines.double().cpu().numpy()
    own = table.diagonal()
    others = (table.sum(1) - own) / max(1, len(own) - 1)
    names = ("cosine", "low", "high"), ("control", "control_low", "control_high")
    both = [mean_interval(values, seed) for values in (own, others)]
    return {key: value for keys, found in zip(names, both, strict=True) for key, value in zip(keys, found, strict=True)}
