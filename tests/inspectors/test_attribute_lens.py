"""The attribute lens: a relation's affine map, and what it is when the model is one."""

from pathlib import Path

import pytest
import torch

from lensbench import testing
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.attribution.attribute_lens import AttributeLens, _pseudo_inverse, linear_relation
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.jacobians import Jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.tokens import Tokens
from lensbench.tasks import load_task
from tests import tiny


def test_of_a_linear_map_is_that_map() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 8, 8, generator=generator), torch.randn(8, generator=generator)
    starts = torch.randn(5, 3, 8, generator=generator)
    # One map a layer, to one and the same end: the starts of deeper layers are where the map takes them from.
    found = [
        linear_relation(
            [Jacobian(weight[[layer]], start[[layer]], weight[layer] @ start[layer] + bias) for start in starts]
        )
        for layer in range(3)
    ]
    for layer, (own, offset) in enumerate(found):
        torch.testing.assert_close(own[0], weight[layer])
        torch.testing.assert_close(offset[0], bias, rtol=1e-4, atol=1e-4)


def test_of_a_model_whose_blocks_add_nothing_is_the_logit_lens() -> None:
    module = tiny.module("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model = LanguageModel(module, Tokens(tiny.tokenizer()), "idle")
    bench = testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine")), (0, 2, 4))
    # The subject must be the last token of the prompt, or nothing of it reaches the end.
    relation = bench.relation.__class__(**{**vars(bench.relation), "inspection": ("They speak of {subject}",)})
    bench = Bench(bench.context, relation, bench.items, bench.train_items)
    own = CrossFit(lambda: AttributeLens(n=3, betas=(1.0,)), bench).scores()
    lens = CrossFit(LogitLens, bench).scores()
    torch.testing.assert_close(own.log_scores, lens.log_scores, rtol=1e-4, atol=1e-4)


NAMES = tuple(f"{first} {last}" for first in ("Bo", "Cy", "Di", "Ed", "Fay") for last in ("Ash", "Birch", "Cole"))


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_an_example_is_mapped_to_its_own_end(kind: str) -> None:
    """With one example, LRE(s) = o at every layer, on every architecture: W is the model's Jacobian and b the rest."""
    model = tiny.model(kind)
    bench = testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine")), (0, 1, 3, 4))
    fitted = CrossFit(lambda: AttributeLens(n=1, betas=(1.0,)), bench).fit(0, bench.context.layers)
    runs = bench.training(AttributeLens(), 0, bench.context.layers, None).runs.asked(bench.question)
    every = range(len(runs))
    starts = runs.read("subject", range(5)).values
    ends = runs.read("site", (4,)).values[0]
    chosen = next(i for i in every if torch.allclose(ends[i], fitted.ends_[0], rtol=1e-3, atol=1e-3))
    for layer in (0, 1, 3):
        mapped = fitted.weight_[layer] @ starts[layer, chosen] + fitted.bias_[layer]
        torch.testing.assert_close(mapped, ends[chosen], rtol=1e-3, atol=1e-3 * float(ends[chosen].abs().max()))


def test_conformance() -> None:
    assert "check_layers_are_local" in testing.check_inspector(lambda: AttributeLens(n=3))


def test_measures_are_shares() -> None:
    bench = testing.small_bench()
    scores = CrossFit(lambda: AttributeLens(n=3, betas=(1.0, 2.0), measure=True), bench).scores()
    assert set(scores.measures) == {"faithfulness", "causality"}
    for values in scores.measures.values():
        assert values.shape == (4, 2, len(bench.items))
        assert set(values.ravel()) <= {0.0, 1.0}


def test_the_pseudo_inverse_of_full_rank_is_the_inverse() -> None:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_pseudo_inverse(weight, 6) @ weight, torch.eye(6), rtol=1e-4, atol=1e-4)
    assert torch.linalg.matrix_rank(_pseudo_inverse(weight, 2)) == 2


def test_too_few_subjects_are_not_applicable() -> None:
    with pytest.raises(NotApplicableError, match="training subjects; the map needs 99"):
        CrossFit(lambda: AttributeLens(n=99), testing.small_bench()).scores()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"betas": ()}, {"rank": 0}])
def test_wrong_parameters_are_refused(wrong: dict) -> None:
    model = tiny.model()
    with pytest.raises(UsageError, match="expected one example or more"):
        AttributeLens(**wrong).check(Target(model), model)


@pytest.mark.model
def test_reads_capitals_from_the_middle_of_the_model(smollm2_folder: Path) -> None:
    from lensbench.models.loading import Loading, load_source
    from lensbench.models.sources import resolve

    how = Loading(device="cpu", dtype="float32")
    model = load_source(resolve(str(smollm2_folder)), how, torch.device("cpu"))
    task = load_task("attribute_extraction/country_capital")
    relation = task.relations["country_capital"]
    items, train = task.items("subject", "test", 40), task.items("subject", "train", 40)
    bench = Bench(RunContext(model, model, Corpus(model), (9,), seed=0), relation, items, train)
    fitted = CrossFit(lambda: AttributeLens(n=4), bench).fit(0, (9,))
    tested = [i for i, item in enumerate(items) if item.fold == 0]
    scores = fitted.inspect(bench.evidence(AttributeLens.reads, tested, (9,)))
    right = 0
    for place, i in enumerate(tested):
        own = [bench.answers.index(choice) for choice in items[i].choices]
        best = max(own, key=lambda answer: float(scores.log_scores[0, 0, place, answer]))
        right += bench.answers[best] == items[i].answer
    # One of eight by chance.
    assert right / len(tested) > 0.3
