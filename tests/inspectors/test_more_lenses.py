"""Jacobian lens, future lens and relearned unembedding: each against its definition."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lensbench import testing
from lensbench.errors import UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.next_token import make_prose_bench
from lensbench.inspectors.base import Inspector, Lens
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.future_lens import FutureLens
from lensbench.inspectors.lenses.jacobian_lens import JacobianLens, _shares
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.relearned_unembedding import RelearnedUnembedding
from lensbench.inspectors.target import Target
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.optimization import TrainingSchedule
from lensbench.models.ridge import RunningMoments, every_pair
from lensbench.tasks import load_task
from tests import tiny

SMALL: dict[str, Callable[[], Inspector]] = {
    "jacobian_lens": lambda: JacobianLens(prompts=3, identity=0.5),
    "future_lens": lambda: FutureLens(tokens=1024),
    "relearned_unembedding": lambda: RelearnedUnembedding(rank=3, tokens=1024, steps=2),
}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return testing.small_bench()


@pytest.mark.parametrize("name", SMALL)
def test_conformance(name: str, bench: Bench) -> None:
    assert len(testing.check_inspector(SMALL[name], bench)) >= 5


def fitted(lens: Lens, kind: str = "llama", corpus: Corpus | None = None) -> Lens:
    model = tiny.model(kind)
    lens.check(Target(model), model)
    done = lens.fit(Target(model), model, Training(corpus=corpus or Corpus(model)))
    assert isinstance(done, Lens)
    return done


def prose(kind: str = "llama") -> torch.Tensor:
    """Residuals at prose that no lens has learned from: [layer, position, d_model]."""
    return torch.cat(list(Corpus(tiny.model(kind), PROSE / "heldout.txt").residuals(512)), dim=1)[:, ::4]


def divergence(lens: Lens, values: torch.Tensor, layer: int) -> float:
    """KL(p || lens) in nats, mean over positions."""
    with torch.no_grad():
        goal = lens.target_.unembed(values[-1]).log_softmax(-1)
        own = lens.logits(layer, values[layer], 0).float().log_softmax(-1)
    return float((goal.exp() * (goal - own)).sum(-1).mean())


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_every_architecture(kind: str) -> None:
    """Finite logits of the whole vocabulary at every layer; at the last one the model's own, where it predicts next."""
    model, values = tiny.model(kind), prose(kind)[:, :6]
    own = model.unembed(values[-1])
    lenses = (
        JacobianLens(prompts=1, identity=0.1),
        FutureLens(tokens=256, ridge=0.1, beyond=(0, 2)),
        RelearnedUnembedding(rank=2, tokens=256, steps=1),
    )
    for lens in lenses:
        fitted(lens, kind)
        for attempt in range(len(lens.ahead)):
            for layer in range(model.n_layers + 1):
                logits = lens.logits(layer, values[layer], attempt)
                assert logits.shape == own.shape
                assert torch.isfinite(logits).all()
        torch.testing.assert_close(lens.logits(model.n_layers, values[-1], 0), own, rtol=1e-4, atol=1e-4)


# Jacobian lens


def whole_jacobians(estimator: str, count: int, seed: int = 0, target: int = 4) -> torch.Tensor:
    """J of each text alone: [text, layer, d_model, d_model]."""
    corpus = Corpus(tiny.model("llama"))
    if estimator == "same":
        return torch.stack([corpus.jacobian(one) for one in corpus.contexts(count, seed)])
    return torch.stack([corpus.later_jacobian(one, torch.arange(32), target) for one in corpus.prompts(count, seed)])


@pytest.mark.parametrize(("estimator", "target"), [("later", None), ("later", 3), ("same", None)])
def test_jacobian_lens_is_the_mean_derivative_and_has_no_offset(estimator: str, target: int | None) -> None:
    model, values = tiny.model("llama"), prose()[:, :6]
    lens = fitted(JacobianLens(estimator, prompts=4, rows=32, target_layer=target, identity=0.25, seed=3))
    mean = whole_jacobians(estimator, 4, seed=3, target=target or 4).mean(0)
    moved = lens.translate((0, 2, 3, 4), values[[0, 2, 3, 4]])
    for place, layer in enumerate((0, 2, 3)[: 2 if target else 3]):
        expected = values[layer] @ mean[layer].T + 0.25 * values[layer]
        torch.testing.assert_close(moved[place], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(moved[3], values[4])
    assert torch.equal(moved[2], values[3]) == (target == 3)
    still = lens.translate((1,), torch.zeros(1, 1, model.d_model))
    assert not still.any()


@pytest.mark.parametrize(("prompts", "rows", "groups"), [(7, 8, 2), (9, 12, 4), (5, 32, 5), (1, 4, 1), (100, 1, 4)])
def test_rows_are_dealt_out_evenly_and_without_bias(prompts: int, rows: int, groups: int) -> None:
    """Each row comes from as many prompts of different groups; over many draws, as often from each of a group."""
    often = torch.zeros(prompts, 32)
    for seed in range(300):
        shares = list(_shares(prompts, rows, 32, seed))
        assert len(shares) == prompts
        assert min(len(share) for _, share in shares) > 0
        counts = torch.stack([torch.bincount(share, minlength=32) for _, share in shares])
        assert (counts.sum(0) == groups).all()
        halves = [sum(count for (half, _), count in zip(shares, counts, strict=True) if half == one) for one in (0, 1)]
        assert all((torch.as_tensor(one) == (groups + 1 - half) // 2).all() for half, one in enumerate(halves))
        often += counts / 300
    shared = torch.tensor([len(group) for group in torch.arange(prompts).tensor_split(groups) for _ in group])
    assert float((often - 1 / shared[:, None]).abs().max()) < 0.15


def test_a_lens_of_some_rows_has_the_right_rows_in_the_mean() -> None:
    each = whole_jacobians("later", 4)
    lens = fitted(JacobianLens(prompts=4, rows=8))
    expected = torch.zeros(4, 32, 32)
    for prompt, (_, rows) in enumerate(_shares(4, 8, 32, 0)):
        expected[:, rows] += each[prompt][:, rows] / 2
    torch.testing.assert_close(lens.weight_, expected, rtol=1e-4, atol=1e-5)


def test_split_half_is_the_cosine_of_the_means_of_two_halves() -> None:
    each = whole_jacobians("later", 5)
    first, second = (each[half::2].mean(0).flatten(1) for half in (0, 1))
    corpus = Corpus(tiny.model("llama"))
    lens = fitted(JacobianLens(prompts=5, rows=32), corpus=corpus)
    torch.testing.assert_close(lens.split_half_, torch.cosine_similarity(first, second, dim=1), rtol=1e-4, atol=1e-4)
    assert corpus.spent.split_half == pytest.approx(lens.split_half_.tolist(), abs=1e-4)
    assert not len(fitted(JacobianLens(prompts=1)).split_half_)


def test_tokens_are_ranked_by_one_row_each() -> None:
    """With a bias-free RMSNorm, (g ⊙ w_t)ᵀ J h orders the tokens as the lens does: a row a token, no whole matrix."""
    model, values = tiny.model("llama"), prose()[:, :6]
    lens = fitted(JacobianLens(prompts=2, rows=32))
    rows = model.module.lm_head.weight * model.module.model.norm.weight
    for layer in range(4):
        ours = lens.logits(layer, values[layer], 0)
        short = values[layer] @ (rows @ lens.weight_[layer]).T
        length = (values[layer] @ lens.weight_[layer].T).square().mean(1, keepdim=True).add(1e-6).rsqrt()
        torch.testing.assert_close(ours, short * length, rtol=1e-4, atol=1e-4)


def test_much_identity_is_the_logit_lens() -> None:
    values = prose()[:, :6]
    lens, plain = fitted(JacobianLens(prompts=1, identity=1e6)), fitted(LogitLens())
    for layer in range(5):
        expected = plain.logits(layer, values[layer], 0)
        torch.testing.assert_close(lens.logits(layer, values[layer], 0), expected, rtol=1e-3, atol=1e-3)


def test_jacobians_are_computed_once_for_all_identities(tmp_path) -> None:
    model = tiny.model("llama")
    corpus = Corpus(model, cache=tmp_path)
    first = fitted(JacobianLens(prompts=2), corpus=corpus)
    assert corpus.spent.tokens == 256
    corpus.later_jacobian = None  # whoever computes again fails
    second = fitted(JacobianLens(prompts=2, identity=1.0), corpus=corpus)
    assert len(corpus.spent.split_half) == 4
    assert torch.equal(first.weight_, second.weight_)


# Future lens


def pairs(model, beyond: int, until: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals of a naive loop: layer 2 at each position of each window, and the last layer so many later."""
    x, y = [], []
    for row in Corpus(model).windows[: tokens // 128]:
        values = model.residuals(row[None], torch.ones(1, 128).long(), torch.arange(128)[None], (2, 4))[:, 0]
        for t in range(1, until):
            x.append(values[0, t])
            y.append(values[1, t + beyond])
    return torch.stack(x).double(), torch.stack(y).double()


def test_future_lens_is_least_squares_on_later_positions() -> None:
    """Without penalty: numpy's least squares; no pair crosses from one window into the next."""
    model = tiny.model("llama")
    lens = fitted(FutureLens(tokens=1024, ridge=0.0, beyond=(1, 3)))
    for attempt, n in enumerate((1, 3)):
        x, y = pairs(model, n, 128 - 3, 1024)
        solution = np.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1).numpy(), y.numpy(), rcond=None)[0]
        expected = torch.from_numpy(solution)
        torch.testing.assert_close(lens.weight_[attempt, 2].double(), expected[:-1].T, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(lens.bias_[attempt, 2].double(), expected[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 0.001, 0.1])
def test_of_the_next_token_it_is_the_affine_lens(ridge: float) -> None:
    model = tiny.model("llama")
    lens = fitted(FutureLens(tokens=1024, ridge=ridge, beyond=(0,)))
    moments = RunningMoments(every_pair(model.n_layers), model.d_model, model.d_model, model.device, centred=False)
    for batch in Corpus(model).residuals(1024):
        moments.add(batch[:-1], batch[-1:])
    weight, bias = moments.ridge(ridge, standardised=False)
    torch.testing.assert_close(lens.weight_[0, :-1], weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.bias_[0, :-1], bias, rtol=1e-4, atol=1e-4)


def test_attempts_say_how_far_ahead() -> None:
    lens = FutureLens(beyond=(0, 2))
    assert lens.ahead == (0, 2)
    assert lens.attempts() == ("default", "ahead=2")
    assert FutureLens().attempts() == ("ahead=1", "ahead=2", "ahead=3")


def test_residuals_in_windows_are_those_of_residuals() -> None:
    corpus = Corpus(tiny.model("llama"))
    (windows,) = corpus.residuals_in_windows(512, skip=128)
    assert windows.shape[1:3] == (4, 127)
    assert torch.equal(windows.flatten(1, 2), torch.cat(list(corpus.residuals(512, skip=128)), dim=1))


def test_in_prose_each_attempt_is_held_against_what_the_model_says_there() -> None:
    """The gold tokens of an attempt are the model's own, that many tokens further on in the passage."""
    model = tiny.model("llama")
    task = load_task("next_token")
    lab = RunContext(model, model, Corpus(model), (2, 4), seed=0)
    passages = [item for item in task.items("answer", "test", 4) if item.relation == "speeches"]
    bench = make_prose_bench(lab, task.relations["speeches"], passages)
    found = CrossFit(lambda: FutureLens(tokens=1024, beyond=(2, 0)), bench).scores()
    assert found.texts.shape == (2, 2, len(bench.items))
    for i, item in enumerate(bench.items):
        ids = model.tokens.encode(item.source).ids + bench.following[item.id].tokens[:2]
        with torch.no_grad():
            says = model.module(torch.tensor([ids])).logits[0].argmax(-1)
        last, third = (model.tokens.decode([int(says[place])]) for place in (-1, -3))
        assert found.golds[0, i] == last
        assert found.golds[1, i] == found.texts[1, 1, i] == third


# Relearned unembedding


def test_rank_zero_is_the_logit_lens() -> None:
    values = prose()[:, :6]
    lens, plain = fitted(RelearnedUnembedding(rank=0)), fitted(LogitLens())
    for layer in range(5):
        expected = plain.logits(layer, values[layer], 0)
        torch.testing.assert_close(lens.logits(layer, values[layer], 0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_the_change_of_the_head_has_its_rank(kind: str) -> None:
    """What it adds to the logit lens is B (A N(h) + c), N the model's own norm as transformers calls it."""
    model, values = tiny.model(kind), prose(kind)[:, :40]
    lens, plain = fitted(RelearnedUnembedding(rank=3, tokens=1024, steps=2), kind), fitted(LogitLens(), kind)
    norm = model.module.get_submodule(model.parts.paths.norm)
    with torch.no_grad():
        added = lens.logits(2, values[2], 0) - plain.logits(2, values[2], 0)
        features = norm(values[2]) @ lens.down_[2].T + lens.offset_[2]
    torch.testing.assert_close(added, features @ lens.up_[2].T, rtol=1e-3, atol=1e-3)
    assert int(torch.linalg.matrix_rank(added.double(), rtol=1e-4)) == 3


def test_each_part_of_the_learning_lowers_divergence() -> None:
    values = prose()
    plain, start, trained = (
        fitted(lens)
        for lens in (LogitLens(), RelearnedUnembedding(steps=0, rank=8), RelearnedUnembedding(steps=30, rank=8))
    )
    for layer in range(4):
        before, begun, after = (divergence(lens, values, layer) for lens in (plain, start, trained))
        assert begun < before
        assert after < begun


def test_its_learning_is_gone_on_with(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after some steps and begun again, it ends where it would have ended."""
    monkeypatch.setattr("lensbench.models.optimization.SAVE_EVERY_SECONDS", 0.0)
    make = lambda: RelearnedUnembedding(rank=2, tokens=512, steps=4)  # noqa: E731
    model = tiny.model("llama")
    whole = fitted(make())
    steps = TrainingSchedule.steps

    def cut_off(self, total, learner):
        for step in steps(self, total, learner):
            yield step
            if step == 2:
                raise KeyboardInterrupt

    corpus = Corpus(model, cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSchedule, "steps", cut_off)
        with pytest.raises(KeyboardInterrupt):
            fitted(make(), corpus=corpus)
    assert list(tmp_path.glob(".*/steps.safetensors"))
    again = fitted(make(), corpus=corpus)
    torch.testing.assert_close(again.up_, whole.up_, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again.down_, whole.down_, rtol=1e-5, atol=1e-6)


def test_jacobians_are_gone_on_with(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensbench.models.optimization.SAVE_EVERY_SECONDS", 0.0)
    model = tiny.model("llama")
    whole = fitted(JacobianLens(prompts=4, rows=8))
    corpus = Corpus(model, cache=tmp_path)
    compute, calls = corpus.later_jacobian, []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    corpus.later_jacobian = counted
    with pytest.raises(KeyboardInterrupt):
        fitted(JacobianLens(prompts=4, rows=8), corpus=corpus)
    again = fitted(JacobianLens(prompts=4, rows=8), corpus=corpus)
    assert len(calls) == 5  # two, the one that was cut off, and two
    torch.testing.assert_close(again.weight_, whole.weight_, rtol=1e-5, atol=1e-6)


# Wrong parameters

WRONG = [
    (lambda: JacobianLens("mean"), "jacobian_lens.estimator = 'mean': expected one of later, same, relevance"),
    (lambda: JacobianLens(prompts=0), "jacobian_lens.prompts = 0: expected 1 or more"),
    (lambda: JacobianLens(rows=2.5), "jacobian_lens.rows = 2.5: expected 1 or more"),
    (lambda: JacobianLens(target_layer=5), "jacobian_lens.target_layer = 5: expected 2 to 4"),
    (lambda: JacobianLens("same", target_layer=3), "for the estimator same none"),
    (lambda: JacobianLens(path="there.pt", rows=3), "jacobian_lens.rows is for fitting, and jacobian_lens.path for"),
    (lambda: JacobianLens(path="there.pt"), "there.pt: no such file; give a Jacobian lens"),
    (lambda: JacobianLens(path=5), "5: no such file; give a Jacobian lens"),
    (lambda: JacobianLens(identity=-1.0), r"jacobian_lens.identity = -1.0: expected 0 or more"),
    (lambda: FutureLens(tokens=0), "future_lens.tokens = 0: a regression needs some; give 128 or more"),
    (lambda: FutureLens(tokens=5), "future_lens.tokens = 5"),
    (lambda: FutureLens(ridge=-0.1), "future_lens.ridge = -0.1"),
    (lambda: FutureLens(beyond=()), r"future_lens.beyond = \(\): expected different numbers from 0"),
    (lambda: FutureLens(beyond=(1, 1)), "expected different numbers"),
    (lambda: FutureLens(beyond=(64,)), r"from 0 \(the next token\) to 63"),
    (lambda: RelearnedUnembedding(rank=33), "relearned_unembedding.rank = 33: expected 0 to 32"),
    (lambda: RelearnedUnembedding(tokens=100), "relearned_unembedding.tokens = 100: expected at least 128"),
    (lambda: RelearnedUnembedding(steps=-1), "relearned_unembedding.steps = -1: expected 0 or more"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_parameters_are_refused(make: Callable[[], Lens], message: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError, match=message):
        make().check(Target(model), model)


# What is known of SmolLM2


@pytest.fixture(scope="module")
def real(smollm2_folder) -> LanguageModel:
    return load_model(str(smollm2_folder))


def real_prose(model: LanguageModel) -> torch.Tensor:
    """Residuals at 45 positions of prose that no lens has learned from: [layer, position, d_model]."""
    return torch.cat(list(Corpus(model, PROSE / "heldout.txt").residuals(384)), dim=1)[:, 4::9]


def learned(lens: Lens, model: LanguageModel) -> Lens:
    done = lens.fit(Target(model), model, Training(corpus=Corpus(model)))
    assert isinstance(done, Lens)
    return done


@pytest.mark.model
def test_future_lens_sees_a_little_of_what_comes_later(real: LanguageModel) -> None:
    """Against the model's own prediction of prose: better than any constant, and less so the further ahead."""
    lens = learned(FutureLens(tokens=4096, beyond=(0, 1, 3)), real)
    windows = torch.cat(list(Corpus(real, PROSE / "heldout.txt").residuals_in_windows(640)), dim=1)
    here, agreement, constant = windows[24, :, 8:120:2].flatten(0, 1), [], []
    for attempt, n in enumerate(lens.ahead):
        gold = real.unembed(windows[-1, :, 8 + n : 120 + n : 2].flatten(0, 1)).argmax(-1)
        agreement.append(float((lens.logits(24, here, attempt).argmax(-1) == gold).float().mean()))
        constant.append(int(gold.bincount().max()) / len(gold))
    assert agreement[0] > agreement[1] + 0.2
    assert agreement[1] > agreement[2] + 0.03
    assert agreement[1] > constant[1] + 0.03


@pytest.mark.model
def test_jacobian_lens_is_nearer_to_the_model_than_the_logit_lens(real: LanguageModel) -> None:
    """From the middle layers on, even at one position of few texts; and a little of the identity steadies it."""
    values = real_prose(real)
    plain, lens = learned(LogitLens(), real), learned(JacobianLens("same", prompts=3, rows=576), real)
    assert isinstance(lens, JacobianLens)
    for layer in (16, 24, 28):
        before, after = divergence(plain, values, layer), divergence(lens, values, layer)
        assert after < 0.8 * before
        lens.identity = 0.3
        assert layer == 28 or divergence(lens, values, layer) < after
        lens.identity = 0.0


@pytest.mark.model
def test_relearned_unembedding_expects_the_right_words(real: LanguageModel) -> None:
    """Its start alone, from few positions, takes away much of the divergence of the middle layers."""
    values = real_prose(real)
    plain, lens = learned(LogitLens(), real), learned(RelearnedUnembedding(rank=4, tokens=1024, steps=0), real)
    for layer in (8, 16, 24):
        assert divergence(lens, values, layer) < 0.6 * divergence(plain, values, layer)
