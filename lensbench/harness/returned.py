"""What inspectors return: refused where it has another form than was asked for, and put together from the folds."""

from collections.abc import Sequence

import numpy as np
import torch

from lensbench.inspectors.evidence import Scores


def require_shape(name: str, scores: Scores, sizes: tuple[int, int, int]) -> None:
    """Refuse scores of another shape than (layer, attempt, item, answer), and scores that are no numbers.

    Args:
        name: of the inspector.
        scores: what it returned.
        sizes: how many layers, items and answers there are.

    Raises:
        ValueError: what is wrong with them.
    """
    layers, items, answers = sizes
    expected = (layers, len(scores.attempts), items, answers)
    if tuple(scores.log_scores.shape) != expected:
        raise ValueError(
            f"{name} returned log_scores of shape {tuple(scores.log_scores.shape)}, expected (layer, "
            f"attempt, item, answer) = {expected}"
        )
    others = {} if scores.texts is None else {"texts": scores.texts}
    for what, values in {**others, **scores.measures}.items():
        if values.shape != expected[:3]:
            raise ValueError(
                f"{name} returned {what} of shape {values.shape}, expected (layer, attempt, item) = {expected[:3]}"
            )
    if len(set(scores.attempts)) < len(scores.attempts):
        raise ValueError(f"{name} gave two attempts one name: {', '.join(scores.attempts)}")
    if bool(torch.isnan(scores.log_scores).any()):
        raise ValueError(f"{name} returned a score that is not a number; give -inf to impossible answers")


def merged(parts: Sequence[tuple[list[int], Scores]]) -> Scores:
    """Put the folds' scores back in the order of the items."""
    order = torch.tensor([i for places, _ in parts for i in places]).argsort()
    scores = [part for _, part in parts]
    log_scores = torch.cat([part.log_scores.cpu() for part in scores], dim=2)[:, :, order]
    ranks, texts = [[getattr(part, name) for part in scores] for name in ("ranks", "texts")]
    found = {name: [part.measures[name] for part in scores] for name in scores[0].measures}
    return Scores(
        scores[0].attempts,
        log_scores,
        None if any(part is None for part in ranks) else torch.cat([part.cpu() for part in ranks], dim=2)[:, :, order],
        None if any(part is None for part in texts) else np.concatenate(texts, axis=2)[:, :, order.numpy()],
        {name: np.concatenate(parts, axis=2)[:, :, order.numpy()] for name, parts in found.items()},
    )


def of_items(scores: Scores, items: Sequence[int]) -> Scores:
    """Return the scores of the items at these places."""
    places = list(items)
    return Scores(
        scores.attempts,
        scores.log_scores[:, :, places],
        None if scores.ranks is None else scores.ranks[:, :, places],
        None if scores.texts is None else scores.texts[:, :, places],
        {name: values[:, :, places] for name, values in scores.measures.items()},
    )


def stacked(parts: Sequence[tuple[Sequence[int], Scores]]) -> Scores:
    """Put scores of different layers together, in the order of the layers.

    Args:
        parts: layers, and the scores there; all of the same attempts at the same items.
    """
    scores = [part for _, part in parts]
    order = np.argsort([layer for layers, _ in parts for layer in layers])
    ranks, texts = [[getattr(part, name) for part in scores] for name in ("ranks", "texts")]
    found = {name: [part.measures[name] for part in scores] for name in scores[0].measures}
    return Scores(
        scores[0].attempts,
        torch.cat([part.log_scores for part in scores])[order],
        None if any(part is None for part in ranks) else torch.cat(ranks)[order],
        None if any(part is None for part in texts) else np.concatenate(texts)[order],
        {name: np.concatenate(values)[order] for name, values in found.items()},
    )


def of_layers(scores: Scores, places: Sequence[int]) -> Scores:
    """Return the scores at the layers at these places."""
    chosen = list(places)
    return Scores(
        scores.attempts,
        scores.log_scores[chosen],
        None if scores.ranks is None else scores.ranks[chosen],
        None if scores.texts is None else scores.texts[chosen],
        {name: values[chosen] for name, values in scores.measures.items()},
    )
