"""Two alignments: of a lens with the model when its stream is changed, and of updates with the gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.inspectors.base import Lens
from lensbench.models.activations import Reading, capture
from lensbench.models.corpus import WINDOW, Corpus
from lensbench.models.gradients import loss_gradients
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import PatchedPass, Prompt
from lensbench.models.patching.patcher import fastest_mode
from lensbench.models.precision import in_float64

TEXT = 64
"""Tokens of a short text: half a window of the corpus."""
RESAMPLES = 2000
PRINCIPAL, RANDOM = KINDS = ("principal", "random")
PER_KIND = 4
"""How many directions of each kind are tried at a layer."""
LOSSES = ("next token", "own top token")
EVERY = 4
"""Every fourth position is read; the first ones, attention sinks among them, are not."""


def sample_residuals(corpus: Corpus, tokens: int, layers: tuple[int, ...]) -> Float[Tensor, "layer token d_model"]:
    """Return the residual stream of corpus positions in float32; the first of each window is left out (a sink).

    Raises:
        LensbenchError: the corpus is shorter than that, or less than one window of it was asked for.
    """
    if tokens < WINDOW:
        raise LensbenchError(f"{tokens} corpus tokens are too few; give at least {WINDOW}, one window of the corpus")
    return torch.cat([batch[list(layers)].float() for batch in corpus.residuals(tokens)], dim=1)


def short_texts(corpus: Corpus, count: int, seed: int) -> Int[Tensor, "text token"]:
    """Draw texts of 64 tokens from the corpus.

    Raises:
        LensbenchError: it does not hold so many.
    """
    texts = corpus.windows.reshape(-1, TEXT)
    if count > len(texts):
        raise LensbenchError(f"{count} texts are too many; {corpus.path.name} has {len(texts)}: give fewer")
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


@dataclass(frozen=True)
class Interventions:
    """Directions of the residual stream, and the coordinates along them that are put in place of a text's own.

    Attributes:
        layers: which.
        kinds: the kind of each direction.
        directions: of unit length.
        donors: v . h of another position of the corpus at the same layer, drawn for each text and direction.
    """

    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    directions: Float[Tensor, "layer direction d_model"]
    donors: Float[Tensor, "layer text direction"]

    def resample(self, h: Float[Tensor, "layer text d_model"]) -> Float[Tensor, "layer text direction d_model"]:
        """Return h + v (v . donor - v . h), for each direction v by itself."""
        own = torch.einsum("ltd,lkd->ltk", h, self.directions)
        return h[:, :, None] + (self.donors - own)[..., None] * self.directions[:, None]


def make_interventions(
    layers: tuple[int, ...], sample: Float[Tensor, "layer token d_model"], texts: int, seed: int, each: int = PER_KIND
) -> Interventions:
    """Choose directions: the first principal components of each layer's sample, and random orthonormal ones.

    Args:
        layers: of the sample.
        sample: residuals of corpus positions.
        texts: how many texts need donors.
        seed: of random directions and donors.
        each: directions of a kind.
    """
    generator = torch.Generator().manual_seed(seed)
    values = exact(sample)
    chosen = []
    for one in values:
        noise = torch.randn(one.shape[1], each, generator=generator).to(one)
        components = torch.linalg.eigh(in_float64(torch.cov(one.T))).eigenvectors.flip(1).T  # eigh's largest are last
        chosen.append(torch.cat([components[:each].to(one), torch.linalg.qr(noise).Q.T]))
    directions = torch.stack(chosen)
    places = torch.randint(values.shape[1], (texts, 2 * each), generator=generator).to(values.device)
    coordinates = torch.einsum("lnd,lkd->lnk", values, directions)
    donors = coordinates.gather(1, places.expand(len(layers), -1, -1))
    return Interventions(layers, (PRINCIPAL,) * each + (RANDOM,) * each, directions, donors)


def stimulus_response(
    model: LanguageModel,
    lenses: Mapping[str, Lens],
    texts: Int[Tensor, "text token"],
    interventions: Interventions,
    seed: int = 0,
) -> pd.DataFrame:
    """Change h_l at the last position of each text, and compare what a lens says of it with what the model then does.

    Stimulus: log f(h_l') - log f(h_l), of lens f; response: the same difference of the model's own output, after the
    blocks above l have run on h_l'. Their alignment is the Aitchison similarity <s, r> / (|s| |r|) with <s, r> =
    sum_i p_i (s_i - p.s) (r_i - p.r), p being the model's own clean output (Belrose et al. 2023).

    Columns: lens, layer, directions ("principal", "random"), alignment with low and high: mean over directions, then
    over texts, with a 95 % bootstrap interval over texts, each layer by itself; stimulus, response: mean of |s| and
    |r|, in nats; silent: share of interventions left out, since the model or the lens moves by less than what two
    passes of the model may differ by; positions.

    Args:
        model: the model.
        lenses: fitted, by name; each predicts the next token in one of its attempts.
        texts: of one length; the last token's residual is changed.
        interventions: made for so many texts.
        seed: of the bootstrap.
    """
    trial = _trial(model, texts, interventions)
    rows = []
    for place, layer in enumerate(interventions.layers):
        for name, found in _at_layer(model, lenses, trial, place, layer).items():
            rows += [
                {"lens": name, "layer": layer, **row}
                for row in _summed(found, interventions.kinds, model.tolerance, seed)
            ]
    frame = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(lenses)}
    return frame.sort_values(["lens", "directions", "layer"], key=lambda c: c.map(order) if c.name == "lens" else c)


@dataclass(frozen=True)
class _PerturbedRun:
    """The texts' residuals, before and after."""

    clean: Float[Tensor, "layer text d_model"]
    changed: Float[Tensor, "layer text direction d_model"]
    clean_final: Float[Tensor, "text d_model"]
    changed_final: Float[Tensor, "layer text direction d_model"]


def _trial(model: LanguageModel, texts: Tensor, interventions: Interventions) -> _PerturbedRun:
    """Run the rest of the model on every changed residual: one patched pass a text, of all layers and directions."""
    layers = interventions.layers
    prompts = [Prompt(tuple(text), len(text) - 1) for text in texts.tolist()]
    clean = capture(model, [Reading(prompt.ids) for prompt in prompts], (*layers, model.n_layers)).values
    changed = interventions.resample(exact(clean[:-1])).to(clean.dtype)
    mode = fastest_mode(model, prompts[0])
    targets = torch.tensor(layers).repeat_interleave(changed.shape[2])
    final = [
        PatchedPass(model, prompt, mode).final_residuals(rows.flatten(0, 1), targets).reshape(rows.shape)
        for prompt, rows in zip(prompts, changed.unbind(1), strict=True)
    ]
    return _PerturbedRun(clean[:-1], changed, clean[-1], torch.stack(final, dim=1))


Found = dict[str, Float[np.ndarray, "text direction"]]


@torch.no_grad()
def _at_layer(
    model: LanguageModel, lenses: Mapping[str, Lens], trial: _PerturbedRun, place: int, layer: int
) -> dict[str, Found]:
    """Return each lens's alignment, stimulus and response at one layer, some texts at a time."""
    directions = trial.changed.shape[2]
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in lenses}
    for texts in torch.arange(trial.clean.shape[1]).split(max(1, model.head_rows // (2 * (directions + 1)))):
        before = model.unembed(trial.clean_final[texts])
        weights = before.softmax(-1)
        after = model.unembed(trial.changed_final[place, texts].flatten(0, 1))
        response = _centred(after, before, weights)
        for name, lens in lenses.items():
            both = torch.cat([trial.clean[place, texts], trial.changed[place, texts].flatten(0, 1)])
            said = lens.logits(layer, both, lens.ahead.index(0)).float()
            stimulus = _centred(said[len(texts) :], said[: len(texts)], weights)
            for key, value in _compare(stimulus, response, weights).items():
                found[name].setdefault(key, []).append(value)
    return {
        name: {key: torch.cat(parts).cpu().double().numpy() for key, parts in one.items()}
        for name, one in found.items()
    }


def _centred(
    after: Float[Tensor, "changed vocab"], before: Float[Tensor, "text vocab"], weights: Float[Tensor, "text vocab"]
) -> Float[Tensor, "text direction vocab"]:
    """Return the change of log-probabilities, centred by the weights: softmax's own constant falls out."""
    change = after.reshape(len(before), -1, after.shape[1]) - before[:, None]
    return change - torch.einsum("tkv,tv->tk", change, weights)[..., None]


def _compare(stimulus: Tensor, response: Tensor, weights: Tensor) -> dict[str, Float[Tensor, "text direction"]]:
    """Return Aitchison similarity and norms of changes that are centred."""
    inner, own, other = (
        torch.einsum("tkv,tv->tk", a * b, weights)
        for a, b in ((stimulus, response), (stimulus, stimulus), (response, response))
    )
    sizes = own.clamp(min=0).sqrt(), other.clamp(min=0).sqrt()
    return {"alignment": inner / (sizes[0] * sizes[1]), "stimulus": sizes[0], "response": sizes[1]}


def _summed(found: Found, kinds: tuple[str, ...], least: float, seed: int) -> list[dict[str, float | str]]:
    """Return one row a kind of direction."""
    rows: list[dict[str, float | str]] = []
    for kind in KINDS:
        of_kind = [place for place, own in enumerate(kinds) if own == kind]
        alignment, stimulus, response = (found[key][:, of_kind] for key in ("alignment", "stimulus", "response"))
        heard = (stimulus >= least) & (response >= least)
        some = heard.any(1)
        means = np.where(heard, alignment, 0.0)[some].sum(1) / heard[some].sum(1)
        mean, low, high = mean_interval(means, seed)
        row: dict[str, float | str] = {"directions": kind, "alignment": mean, "low": low, "high": high}
        sizes = {"stimulus": float(stimulus.mean()), "response": float(response.mean())}
        rows.append({**row, **sizes, "silent": float(1 - heard.mean()), "positions": int(some.sum())})
    return rows


def update_alignment(
    model: LanguageModel, texts: Int[Tensor, "text token"], layers: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Return the cosine between each block's update and the direction of steepest descent.

    Columns: loss, layer (l: before the block), cosine with low and high; control with control_low and control_high;
    update: mean of |h_{l+1} - h_l| / |h_l|; nats: mean of the cross-entropy; texts, positions. Means over positions,
    then over texts, with 95 % bootstrap intervals over texts, each layer by itself. `update_cosines` says of what.

    Args:
        model: the model.
        texts: of one length; the model sees all but the last token.
        layers: the layers asked; the last layer has no update, and no row.
        seed: of the bootstrap.
    """
    return mean_over_texts(update_cosines(model, texts, layers), seed)


def update_cosines(model: LanguageModel, texts: Int[Tensor, "text token"], layers: Sequence[int]) -> pd.DataFrame:
    """Return what `update_alignment` is the mean of, a row for each loss (`relation`), text (`subject`) and layer.

    `cosine` at layer l is cos(h_{l+1} - h_l, -dL/dh_l), the mean over each fourth position of the text (Jastrzebski et
    al. 2018; Belrose et al. 2023), L being the sum of the text's cross-entropies: of the tokens that follow ("next
    token"), or of those that the model itself finds most likely ("own top token"). `control` is that of the same update
    with the gradients at the same position of all other texts.
    """

    def goals(rows: slice, logits: Tensor) -> Tensor:
        return torch.stack([texts[rows, 1:].to(logits.device), logits.argmax(2)])

    places = torch.arange(EVERY, texts.shape[1] - 1, EVERY)
    found = loss_gradients(model, texts[:, :-1], goals, places)
    frames = []
    for name, gradients, losses in zip(LOSSES, found.gradients, found.losses, strict=True):
        for layer in (layer for layer in layers if layer < model.n_layers):
            h, after = exact(found.residuals[layer]), exact(found.residuals[layer + 1])
            cosine, control = _cosines_of_texts(after - h, -exact(gradients[layer]))
            size = ((after - h).norm(dim=2) / h.norm(dim=2)).mean(1).cpu().double().numpy()
            columns = {"cosine": cosine, "control": control, "update": size, "nats": float(losses.mean())}
            where = {"relation": name, "subject": range(len(h)), "layer": layer, "positions": h.shape[1]}
            frames.append(pd.DataFrame({**where, **columns}))
    return pd.concat(frames, ignore_index=True)


def mean_over_texts(cosines: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the table of `update_alignment` from that of `update_cosines`."""
    rows = []
    for (loss, layer), part in cosines.groupby(["relation", "layer"], sort=False):
        row: dict[str, object] = {"loss": loss, "layer": layer}
        for name, ends in (("cosine", ("low", "high")), ("control", ("control_low", "control_high"))):
            found = mean_interval(part[name].to_numpy(), seed)
            row |= dict(zip((name, *ends), found, strict=True))
        counts = {"texts": len(part), "positions": int(part["positions"].sum())}
        rows.append({**row, "update": part["update"].mean(), "nats": part["nats"].mean(), **counts})
    return pd.DataFrame(rows)


def _cosines_of_texts(
    updates: Float[Tensor, "text place d_model"], descents: Float[Tensor, "text place d_model"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean cosine of each text's pairs, and that of its updates with the descents of all other texts."""
    normalise = torch.nn.functional.normalize
    cosines = torch.einsum("tpd,upd->tu", normalise(updates, dim=2), normalise(descents, dim=2)) / updates.shape[1]
    table = cosines.cpu().double().numpy()
    own = table.diagonal()
    return own, (table.sum(1) - own) / max(1, len(own) - 1)
