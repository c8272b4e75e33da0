"""Maps between two models, and the Patchscope that uses them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lensbench import testing
from lensbench.errors import LensbenchError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.patchscopes.mapped_patchscope import MappedPatchscope
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.target import Target
from lensbench.models.corpus import PROSE, WINDOW, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model, train_tokenizer
from lensbench.models.patching import patcher_of
from lensbench.models.ridge import LayerPair, RunningMoments, fit_maps
from lensbench.models.tokens import Tokens, pair_window, same_tokenizer
from lensbench.tasks import load_task
from tests import tiny
from tests.rotated import rotated


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def turned(llama: LanguageModel) -> tuple[LanguageModel, torch.Tensor]:
    return rotated(llama)


@pytest.fixture(scope="module")
def other_tokens() -> Tokens:
    """A tokenizer that learned its merges from other texts, and adds a BOS."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(PROSE.glob("train.txt")))
    return Tokens(train_tokenizer(text[:20000].upper() + text[20000:40000], bos=True))


def bench(model: LanguageModel, verbalizer: LanguageModel) -> Bench:
    names = tuple(f"{first} {last}" for first in ("Bo", "Cy", "Di", "Ed", "Fay") for last in ("Ash", "Cole"))
    made = testing.make_bench(model, Corpus(model), testing.Subjects(names, ("tea", "wine")), (0, 1, 2, 3, 4))
    return replace(made, context=RunContext(model, verbalizer, made.context.corpus, made.context.layers, seed=0))


def test_the_rotated_model_is_the_model_in_another_basis(
    llama: LanguageModel, turned: tuple[LanguageModel, torch.Tensor]
) -> None:
    copy, turn = turned
    ids = torch.randint(5, 500, (3, 12), generator=torch.Generator().manual_seed(1))
    where, every = torch.arange(12).expand(3, -1), range(llama.n_layers + 1)
    own = llama.residuals(ids, torch.ones_like(ids), where, every)
    theirs = copy.residuals(ids, torch.ones_like(ids), where, every)
    torch.testing.assert_close(theirs.double(), own.double() @ turn.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.module(ids).logits, llama.module(ids).logits, rtol=1e-4, atol=1e-4)
    assert (theirs - own).abs().max() > 1


def test_maps_are_ridge_regressions() -> None:
    """The least mean of |y - Wx - b|^2 + penalty sum_i var(x_i) |W_i|^2: numpy's least squares on augmented rows."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1000.0, 1.0, 0.1, 3.0, 0.5])
    x = torch.randn(3, 200, 5, generator=generator) * scales + 7
    y = torch.randn(2, 200, 4, generator=generator) + x[1, :, :4] * torch.tensor([0.001, 1.0, 10.0, 0.3])
    pairs = (LayerPair(2, 0), LayerPair(0, 5), LayerPair(2, 5))
    weight, bias = fit_maps([(x[:, :90], y[:, :90]), (x[:, 90:], y[:, 90:])], pairs, 0.3)
    for i, pair in enumerate(pairs):
        goal = y[{0: 0, 5: 1}[pair.target]].double()
        given = x[pair.source].double()
        centred = given - given.mean(0)
        deviation = centred.square().mean(0).sqrt()
        rows = torch.cat([centred, (0.3 * len(given)) ** 0.5 * torch.diag(deviation)])
        goals = torch.cat([goal - goal.mean(0), torch.zeros(5, 4).double()])
        expected = torch.linalg.lstsq(rows, goals).solution.T
        torch.testing.assert_close(weight[i].double(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias[i].double(), goal.mean(0) - expected @ given.mean(0), rtol=1e-4, atol=1e-4)


def test_a_coordinate_that_never_moves_does_no_harm() -> None:
    x = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
    x[..., 1] = 2.0
    weight, bias = fit_maps([(x, x)], (LayerPair(0, 0),), 1e-6)
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(x[0] @ weight[0].T + bias[0], x[0], rtol=1e-3, atol=1e-3)


def test_no_positions_make_no_map() -> None:
    with pytest.raises(ValueError, match="no position"):
        fit_maps([], (LayerPair(0, 0),), 0.1)


def fitted(model: LanguageModel, verbalizer: LanguageModel, **parameters: object) -> MappedPatchscope:
    method = MappedPatchscope(**{"tokens": 4096, "ridge": 1e-6, **parameters})
    return method.fit(Target(model), verbalizer, Training(corpus=Corpus(model)))


def test_the_map_of_a_layer_to_itself_is_the_identity(llama: LanguageModel) -> None:
    found = fitted(llama, llama, target_layers=("same",))
    assert len(found.pairs_) == llama.n_layers + 1
    eye = torch.eye(llama.d_model)
    for weight, bias in zip(found.weight_, found.bias_, strict=True):
        torch.testing.assert_close(weight, eye, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(bias, torch.zeros_like(bias), rtol=1e-3, atol=1e-3)
    # The penalty shrinks each direction of the standardised residual by its eigenvalue over that and the penalty.
    half = fitted(llama, llama, target_layers=("same",), ridge=1.0)
    assert all(0.05 < float(weight.diagonal().mean()) < 0.9 for weight in half.weight_)


def test_the_map_to_a_rotated_copy_is_the_rotation(
    llama: LanguageModel, turned: tuple[LanguageModel, torch.Tensor]
) -> None:
    copy, turn = turned
    found = fitted(llama, copy, target_layers=("same", 2))
    for layer in range(llama.n_layers + 1):
        weight = found.weight_[found.pairs_[LayerPair(layer, layer)]]
        torch.testing.assert_close(weight.double(), turn, rtol=1e-3, atol=2e-3)
    crossed = found.weight_[found.pairs_[LayerPair(0, 2)]]
    assert (crossed.double() - turn).abs().max() > 0.1


def test_only_the_map_reads_through_a_rotation(
    llama: LanguageModel, turned: tuple[LanguageModel, torch.Tensor]
) -> None:
    copy, _ = turned
    own = CrossFit(lambda: Patchscope(("same",)), bench(llama, llama)).scores().log_scores
    plain = CrossFit(lambda: Patchscope(("same",)), bench(llama, copy)).scores().log_scores
    mapped = CrossFit(lambda: MappedPatchscope(("same",), tokens=4096, ridge=1e-6), bench(llama, copy)).scores()
    torch.testing.assert_close(mapped.log_scores, own, rtol=5e-3, atol=5e-3)
    assert (plain - own)[1:].abs().max() > 0.1


def test_a_layer_is_solved_for_each_target_layer_as_if_alone(llama: LanguageModel) -> None:
    both = fitted(llama, llama, target_layers=(1, 3), tokens=1024)
    alone = fitted(llama, llama, target_layers=(3,), tokens=1024)
    for pair, place in alone.pairs_.items():
        torch.testing.assert_close(both.weight_[both.pairs_[pair]], alone.weight_[place])
        torch.testing.assert_close(both.bias_[both.pairs_[pair]], alone.bias_[place])


def test_tokens_are_paired_where_they_end_together(llama: LanguageModel, other_tokens: Tokens) -> None:
    assert same_tokenizer(llama.tokens, Tokens(tiny.tokenizer()))
    assert not same_tokenizer(llama.tokens, other_tokens)
    text = PROSE.joinpath("heldout.txt").read_text(encoding="utf-8")[:3000] + " Crème brûlée — café. 漢字 and so on"
    encoding = llama.tokens.encode(text)
    window = range(len(encoding.ids) - 200, len(encoding.ids))
    paired = pair_window(encoding, window, other_tokens)
    begin = encoding.offsets[window[0]][0]
    theirs = other_tokens.encode(text[begin:])
    assert paired.other_ids == theirs.ids
    assert len(paired.positions) > 40
    for own, other in paired.positions:
        assert own > 0
        assert other > 0
        assert encoding.offsets[window[own]][1] == begin + theirs.offsets[other][1]
    ends = {encoding.offsets[i][1] - begin for i in window[1:]} & {b for a, b in theirs.offsets[1:] if a < b}
    assert len({encoding.offsets[window[own]][1] for own, _ in paired.positions}) == len(paired.positions) == len(ends)
    # A character of several tokens is complete at the last of them.
    for own, _ in paired.positions:
        later = [encoding.offsets[i][1] for i in window[own + 1 :]]
        assert encoding.offsets[window[own]][1] not in later


def test_the_same_text_pairs_with_itself_one_to_one(llama: LanguageModel) -> None:
    corpus = Corpus(llama)
    own = torch.cat([values for values, _ in corpus.paired(llama, 2048, (3, 1))], dim=1)
    other = torch.cat([values for _, values in corpus.paired(llama, 2048, (3, 1))], dim=1)
    plain = torch.cat(list(Corpus(llama).residuals(2048)), dim=1)
    torch.testing.assert_close(own, plain)
    torch.testing.assert_close(other, plain[[3, 1]])
    assert corpus.spent.tokens == 2 * 2048


def test_residuals_of_two_tokenizers_are_those_of_each_alone(llama: LanguageModel, other_tokens: Tokens) -> None:
    """One window, both models run on it by themselves."""
    other = LanguageModel(tiny.module("gpt2", seed=3), other_tokens, "other")
    corpus = Corpus(llama)
    ((own, theirs),) = list(corpus.paired(other, WINDOW, (2, 0)))
    first = int(torch.randperm(len(corpus.windows), generator=torch.Generator().manual_seed(0))[0]) * WINDOW
    encoding = llama.tokens.encode(corpus.path.read_text(encoding="utf-8"))
    paired = pair_window(encoding, range(first, first + WINDOW), other_tokens)
    assert paired.ids == tuple(corpus.windows[0].tolist())
    every = range(llama.n_layers + 1)
    for model, ids, side, layers, found in (
        (llama, paired.ids, 0, every, own),
        (other, paired.other_ids, 1, (2, 0), theirs),
    ):
        text, where = torch.tensor([ids]), torch.tensor([[pair[side] for pair in paired.positions]])
        expected = model.residuals(text, torch.ones_like(text), where, layers)[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_more_tokens_than_the_text_has_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(LensbenchError, match="ask for fewer"):
        next(Corpus(llama).paired(llama, 10**9, (0,)))


def test_maps_are_learned_once_a_verbalizer(
    llama: LanguageModel, turned: tuple[LanguageModel, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = iter([Corpus(llama, cache=tmp_path)] * 2 + [Corpus(llama, cache=tmp_path)] * 2)

    def learn(verbalizer: LanguageModel) -> MappedPatchscope:
        return MappedPatchscope(tokens=1024).fit(Target(llama), verbalizer, Training(corpus=next(corpora)))

    first, other = learn(llama), learn(turned[0])
    assert not torch.equal(first.weight_, other.weight_)
    monkeypatch.setattr(MappedPatchscope, "_learn", lambda *_: pytest.fail("learned again"))
    assert torch.equal(first.weight_, learn(llama).weight_)
    assert torch.equal(other.weight_, learn(turned[0]).weight_)


def test_conformance() -> None:
    done = testing.check_inspector(lambda: MappedPatchscope((1, "same"), tokens=1024))
    assert "check_constant_activation" in done


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_every_architecture_is_a_verbalizer_of_another_width(kind: str, llama: LanguageModel) -> None:
    """Carried from a model of 32 coordinates into one of them, whose tokens are the same."""
    made = bench(llama, tiny.model(kind))
    scores = CrossFit(lambda: MappedPatchscope((1,), tokens=512), made).scores()
    assert scores.log_scores.shape == (5, 1, 10, 2)
    assert torch.isfinite(scores.log_scores).all()
    assert (scores.log_scores.std(2) > 0).all()


def test_another_width_and_tokenizer_go_through(llama: LanguageModel, other_tokens: Tokens) -> None:
    wide = {**tiny.CONFIGS["llama"], "hidden_size": 48}
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **wide)).float().eval()
    other = LanguageModel(module, other_tokens, "wide")
    with pytest.raises(UsageError, match="or mapped_patchscope, which learns a map"):
        Patchscope().check(Target(llama), other)
    MappedPatchscope().check(Target(llama), other)
    method = CrossFit(lambda: MappedPatchscope((1, "same"), tokens=1024), bench(llama, other))
    scores = method.scores()
    assert method.fit(None, (0,)).weight_.shape == (9, 48, 32)
    assert torch.isfinite(scores.log_scores).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target_layers": (9,)}, r"target_layers \(9,\); tiny-llama has layers 0 to 4"),
        ({"target_layers": ()}, r"target_layers \(\)"),
        ({"prompt": "The capital is"}, "no slot|unknown mapped_patchscope.prompt"),
        ({"placeholder": "several words"}, "several tokens"),
        ({"tokens": 0}, "give 128 or more"),
        ({"tokens": 12}, "at least 128"),
        ({"ridge": 0.0}, "give 0.0001 or more"),
        ({"ridge": -1.0}, "expected 0 or more"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, object], message: str, llama: LanguageModel) -> None:
    with pytest.raises(UsageError, match=message):
        MappedPatchscope(**parameters).check(Target(llama), llama)


def test_sums_need_the_layers_they_name(llama: LanguageModel) -> None:
    moments = RunningMoments((LayerPair(3, 1), LayerPair(0, 4)), 32, 32, torch.device("cpu"))
    assert moments.sources == (0, 3)
    assert moments.targets == (1, 4)


@pytest.mark.model
def test_a_map_reads_the_real_model_through_a_rotation(smollm2_folder: Path) -> None:
    """SmolLM2 reads its own activations through a rotated copy with the map alone, as well as without either."""
    model = load_model(str(smollm2_folder))
    copy, _ = rotated(model)
    task = load_task("attribute_extraction/country_capital")
    items = tuple(task.items("subject", "test", 10))
    made = Bench(RunContext(model, copy, Corpus(model), (6,), seed=0), task.relations["country_capital"], items, ())
    own = replace(made, context=replace(made.context, verbalizer=model))
    plain = CrossFit(lambda: Patchscope((6,)), own).scores().log_scores
    # Proved on the model, whose blocks the copy has: that saves seconds.
    patcher_of(copy).mode = patcher_of(model).mode
    lost = CrossFit(lambda: Patchscope((6,)), made).scores().log_scores
    # At l = l* the map is the rotation; at other source layers it is a regression.
    mapped = CrossFit(lambda: MappedPatchscope((6,), tokens=768, ridge=1e-5), made).scores().log_scores
    torch.testing.assert_close(mapped[0], plain[0], rtol=0.05, atol=0.25)
    assert (lost[0] - plain[0]).abs().mean() > 1
