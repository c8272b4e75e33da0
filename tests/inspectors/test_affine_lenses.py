"""Affine lens and tuned lens: the regression, the four losses, and what they gain on a real model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lensbench import testing
from lensbench.errors import UsageError
from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.affine_lens import AffineLens
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import LOSSES, TunedLens, _Loss
from lensbench.inspectors.target import Target
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from tests import tiny


def fitted(lens: Translator, corpus: Corpus, model: LanguageModel) -> Translator:
    lens.check(Target(model), model)
    return lens.fit(Target(model), model, Training(corpus=corpus))


def positions(corpus: Corpus, tokens: int, skip: int = 0) -> torch.Tensor:
    return torch.cat(list(corpus.residuals(tokens, skip=skip)), dim=1)


class Synthetic(Corpus):
    """A corpus whose residuals are given: 4,096 positions of them."""

    def __init__(self, model: LanguageModel, values: torch.Tensor) -> None:
        super().__init__(model)
        self._values = values

    def residuals(self, tokens: int, *, skip: int = 0) -> Iterator[torch.Tensor]:
        yield from self._values[:, :tokens].split(512, dim=1)


def test_without_penalty_the_affine_lens_is_least_squares() -> None:
    model = tiny.model("llama")
    corpus = Corpus(model)
    lens = fitted(AffineLens(tokens=8192, ridge=0.0), corpus, model)
    values = positions(corpus, 8192).double().numpy()
    for layer in range(model.n_layers):
        x = np.concatenate([values[layer], np.ones((values.shape[1], 1))], axis=1)
        solution = np.linalg.lstsq(x, values[-1], rcond=None)[0]
        np.testing.assert_allclose(lens.weight_[layer], solution[:-1].T, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(lens.bias_[layer], solution[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [AffineLens, TunedLens])
def test_with_a_penalty_it_is_least_squares_with_rows_that_stand_for_the_penalty(kind: type[Translator]) -> None:
    """Towards zero in the plain form, towards the identity in the residual form."""
    model, penalty = tiny.model("llama"), 0.3
    corpus = Corpus(model)
    parameters = {"tokens": 4096, "ridge": penalty} | ({"steps": 0} if kind is TunedLens else {})
    lens = fitted(kind(**parameters), corpus, model)
    values = positions(corpus, 4096).double().numpy()
    x, y = values[1], values[-1] - (values[1] if kind is TunedLens else 0)
    centred = x - x.mean(0)
    extra = np.sqrt(penalty * x.var(0).mean() * len(x)) * np.eye(x.shape[1])
    rows = np.concatenate([centred, extra])
    solution = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros_like(extra)]), rcond=None)[0]
    np.testing.assert_allclose(lens.weight_[1], solution.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(lens.bias_[1], y.mean(0) - x.mean(0) @ solution, rtol=1e-3, atol=1e-3)


def test_the_map_to_a_rotated_copy_is_the_rotation() -> None:
    model = tiny.model("llama")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 32, generator=generator) * torch.logspace(-1, 1, 32) + 3
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    shift = torch.randn(32, generator=generator)
    copy = x @ rotation.T + shift
    # Layers 0 to 2 are the original, layer 3 the copy itself.
    lens = fitted(AffineLens(4096, ridge=1e-9), Synthetic(model, torch.stack([x, x, x, copy, copy])), model)
    for layer, expected, offset in ((0, rotation, shift), (3, torch.eye(32), torch.zeros(32))):
        torch.testing.assert_close(lens.weight_[layer], expected, rtol=0, atol=2e-3)
        torch.testing.assert_close(lens.bias_[layer], offset, rtol=0, atol=2e-2)
    torch.testing.assert_close(lens.translate((0,), x[None, :5])[0], copy[:5], rtol=1e-3, atol=1e-2)


METHODS = {
    "affine": lambda: AffineLens(tokens=1024),
    **{loss: lambda loss=loss: TunedLens(tokens=1024, steps=2, loss=loss) for loss in LOSSES},
}


@pytest.mark.parametrize("name", METHODS)
def test_conformance(name: str) -> None:
    assert len(testing.check_inspector(METHODS[name], testing.small_bench())) >= 7


@pytest.mark.parametrize("kind", tiny.CONFIGS | tiny.HYBRIDS)
def test_every_architecture_is_mapped_and_its_last_layer_left_alone(kind: str) -> None:
    model = tiny.model(kind)
    corpus, target = Corpus(model), Target(model)
    values = positions(corpus, 1024)[:, ::8]
    goal = model.unembed(values[-1]).log_softmax(-1)
    for lens in (AffineLens(tokens=2048, ridge=0.1), TunedLens(tokens=2048, ridge=0.1, steps=1, loss="cosine")):
        found = fitted(lens, corpus, model).translate(tuple(range(5)), values)
        assert torch.equal(found[-1], values[-1])
        errors = (found - values[-1]).square().mean((1, 2))
        # Closer to the last layer than its own mean is, at the layer before it.
        assert errors[-2] < values[-1].var(0).mean()
        lenses = model.unembed(found.flatten(0, 1)).log_softmax(-1)
        assert bool(torch.isfinite(lenses).all())
        assert torch.equal(lenses.reshape(5, len(goal), -1)[-1].argmax(-1), goal.argmax(-1))
    seen = []
    handle = model.parts.final.register_forward_hook(lambda _m, _a, output: seen.append(output))
    target.unembed(values[1])
    handle.remove()
    torch.testing.assert_close(target.norm(values[1]), seen[0].reshape(values[1].shape), rtol=1e-4, atol=1e-5)


def test_losses_are_what_they_are_called() -> None:
    model = tiny.model("gemma2")
    target = Target(model)
    values = positions(Corpus(model), 256).double()[:, ::16]
    last, moved = values[-1], values[:3]
    heads = [model.unembed(h.float()).double().log_softmax(-1).numpy() for h in values]
    p, lens = heads[-1], np.stack(heads[:3])
    normed = np.stack([target.norm(h.float()).double().numpy() for h in values])
    norms = np.linalg.norm(normed, axis=-1)
    expected = {
        "kl": (np.exp(p) * (p - lens)).sum(-1).mean(-1),
        "reverse_kl": (np.exp(lens) * (lens - p)).sum(-1).mean(-1),
        "mse": ((moved - last) ** 2).mean((1, 2)).numpy() / last.var(0).mean().item(),
        "cosine": 1 - ((normed[:3] * normed[-1]).sum(-1) / (norms[:3] * norms[-1])).mean(-1),
    }
    assert set(expected) == set(LOSSES)
    for kind, figures in expected.items():
        loss = _Loss(kind, target, last.float())
        found = loss.distance(loss.goal(last.float()), moved.float())
        np.testing.assert_allclose(found, figures, rtol=1e-3, atol=1e-5, err_msg=kind)
        assert loss.distance(loss.goal(last.float()), last.float()[None]).abs().item() < 1e-5


@pytest.mark.parametrize("kind", LOSSES)
def test_steps_lower_the_loss_that_they_are_made_on(kind: str) -> None:
    """Where the ridge is so strong that it learns offsets only: all four have something to gain, on other prose too.

    Layer 0 of a random model tells next to nothing of its last.
    """
    model = tiny.model("llama")
    corpus = Corpus(model)
    held = positions(corpus, 1024, skip=40960)
    loss = _Loss(kind, Target(model), held[-1])
    found = []
    for steps in (0, 60):
        lens = fitted(TunedLens(tokens=4096, ridge=1e9, steps=steps, loss=kind), corpus, model)
        found.append(loss.distance(loss.goal(held[-1]), lens.translate((0, 1, 2, 3), held[:4])))
    assert bool((found[1] < found[0])[1:].all()), found


def test_kl_is_the_default_and_the_losses_end_elsewhere() -> None:
    model = tiny.model("llama")
    corpus = Corpus(model)
    default = fitted(TunedLens(tokens=1024, steps=2), corpus, model)
    others = {loss: fitted(TunedLens(tokens=1024, steps=2, loss=loss), corpus, model) for loss in LOSSES}
    assert torch.equal(default.weight_, others["kl"].weight_)
    for first in LOSSES:
        assert [other for other in LOSSES if torch.equal(others[other].weight_, others[first].weight_)] == [first]


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        (TunedLens(loss="kl_reverse"), "tuned_lens.loss = 'kl_reverse': expected one of kl, reverse_kl, mse, cosine"),
        (TunedLens(tokens=100), "tuned_lens.tokens = 100: expected 0, or at least 128"),
        (TunedLens(steps=-1), "tuned_lens.steps = -1: expected 0 or more"),
        (TunedLens(ridge=-0.1), "tuned_lens.ridge = -0.1"),
        (AffineLens(tokens=0), "affine_lens.tokens = 0: a regression needs some; give 128 or more"),
        (AffineLens(tokens=-128), "affine_lens.tokens = -128"),
        (AffineLens(ridge=float("nan")), "affine_lens.ridge = nan"),
    ],
)
def test_wrong_parameters_are_refused(lens: Translator, message: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError) as error:
        lens.check(Target(model), model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_learned_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    corpus = Corpus(model, cache=tmp_path)
    first = fitted(AffineLens(tokens=1024), corpus, model)
    assert corpus.spent.tokens == 1024
    monkeypatch.setattr(AffineLens, "_solve", lambda *_: pytest.fail("learned again"))
    again = fitted(AffineLens(tokens=1024), Corpus(model, cache=tmp_path), model)
    assert torch.equal(first.weight_, again.weight_)


@pytest.mark.model
def test_both_come_nearer_to_the_real_model_than_the_logit_lens(smollm2_folder: Path) -> None:
    """On prose that they have not seen, though they learn from a quarter of what they get by default."""
    from lensbench.models.loading import load_model

    model = load_model(str(smollm2_folder))
    corpus, target = Corpus(model), Target(model)
    held = positions(Corpus(model, PROSE / "heldout.txt"), 384)[:, ::8]
    goal = model.unembed(held[-1]).log_softmax(-1)

    def divergence(lens: Translator) -> np.ndarray:
        lens.fit(target, model, Training(corpus=corpus))
        with torch.no_grad():
            per_layer = [lens.logits(layer, held[layer], 0).log_softmax(-1) for layer in (0, 6, 12, 18, 24, 29)]
        return np.array([float((goal.exp() * (goal - own)).sum(-1).mean()) for own in per_layer])

    plain, affine, tuned = map(divergence, (LogitLens(), AffineLens(tokens=2048), TunedLens(tokens=2048, steps=1)))
    assert (affine[:-1] < plain[:-1] - 0.5).all(), (plain, affine)
    assert (tuned < plain).all(), (plain, tuned)
