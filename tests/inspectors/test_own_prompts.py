"""Methods that patch an item's residual into the item's own prompt, against naive hooks."""

import pytest
import torch

from lensbench import testing
from lensbench.baselines.spec import find_function
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.patchscopes.own_prompts import BackPatching, ChainOfThoughtPatchscope, spread_layers
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.tasks import load_task
from tests import tiny

RELATION = "person_capital"


def chains(kind: str = "llama", site: str = "t2", relation: str = RELATION) -> Bench:
    model = tiny.model(kind)
    task = load_task(f"multi_hop/{relation}")
    lab = RunContext(model, model, Corpus(model), (0, 1, 3, 4), seed=0)
    return Bench(lab, task.relations[relation], task.items(site, "test", 6), task.items(site, "train", 6))


def naive(bench: Bench, i: int, read: int, write: int, source: int, target: int) -> torch.Tensor:
    """Two whole passes on transformers: read at one token and layer, write at another."""
    model = bench.context.model
    ids = torch.tensor([model.tokens.encode(bench.items[i].source).ids])
    places = [*model.parts.blocks, model.parts.final]
    seen: list[torch.Tensor] = []

    def look(_module: object, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0, read].clone())

    def overwrite(_module: object, args: tuple, kwargs: dict) -> tuple:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, write] = seen[0]
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with torch.no_grad():
        handle = places[source].register_forward_pre_hook(look, with_kwargs=True)
        model.module(ids, use_cache=False)
        handle.remove()
        handle = places[target].register_forward_pre_hook(overwrite, with_kwargs=True)
        logits = model.module(ids, use_cache=False).logits[0, -1]
        handle.remove()
    return logits.log_softmax(-1)[[model.tokens.answer_token(answer) for answer in bench.answers]]


def token_at(bench: Bench, i: int, character: int) -> int:
    """The token that holds the character before this one, found by decoding ever longer beginnings."""
    model, item = bench.context.model, bench.items[i]
    ids = model.tokens.encode(item.source).ids
    return next(n for n in range(len(ids)) if len(model.tokens.decode(ids[: n + 1])) >= character)


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_back_patching_is_two_hooked_passes(kind: str) -> None:
    bench = chains(kind)
    scores = CrossFit(lambda: BackPatching("0,2"), bench).scores()
    assert scores.attempts == ("hop->hop@0", "hop->hop@2", "site->site@0", "site->site@2")
    last = len(bench.context.model.tokens.encode(bench.items[1].source).ids) - 1
    hop = token_at(bench, 1, bench.items[1].hop_span[1])
    assert hop < last
    for place, layer in enumerate(bench.context.layers):
        for attempt, (position, target) in enumerate([(hop, 0), (hop, 2), (last, 0), (last, 2)]):
            own = naive(bench, 1, position, position, layer, target if layer > target else layer)
            torch.testing.assert_close(scores.log_scores[place, attempt, 1], own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_chain_of_thought_patchscope_is_two_hooked_passes(kind: str) -> None:
    bench = chains(kind)
    scores = CrossFit(lambda: ChainOfThoughtPatchscope("all"), bench).scores()
    assert scores.attempts[0] == "hop->before_hop@1"
    item = bench.items[2]
    assert item.hop_span is not None
    begin = len(item.source[: item.hop_span[0]].rstrip())
    hop, before = token_at(bench, 2, item.hop_span[1]), token_at(bench, 2, begin)
    for place, layer in enumerate(bench.context.layers):
        for attempt, target in enumerate([1, 0, 2, 3, 4]):
            own = naive(bench, 2, hop, before, layer, target)
            torch.testing.assert_close(scores.log_scores[place, attempt, 2], own, rtol=1e-3, atol=1e-3)


def test_a_source_layer_that_is_not_above_the_target_layer_patches_nothing() -> None:
    bench = chains()
    scores = CrossFit(lambda: BackPatching("4"), bench).scores()
    (asked,) = find_function("asked_in_text")(CrossFit(BackPatching, bench))
    plain = asked.scores.log_scores[0, asked.scores.attempts.index("{source}")]
    torch.testing.assert_close(scores.log_scores[:, 0], plain.expand(4, -1, -1), rtol=1e-4, atol=1e-4)


def test_another_subjects_activation_is_patched_by_the_shuffled_rival() -> None:
    bench = chains()
    method = CrossFit(lambda: BackPatching("0"), bench)
    (other,) = find_function("shuffled")(method)
    own = method.scores()
    # Layer 0 patches nothing, so that nothing changes there.
    torch.testing.assert_close(other.scores.log_scores[0], own.log_scores[0])
    assert (other.scores.log_scores[2] - own.log_scores[2]).abs().max() > 1e-3


def test_what_asks_nothing_is_not_applicable() -> None:
    with pytest.raises(NotApplicableError, match="end with the first hop"):
        CrossFit(ChainOfThoughtPatchscope, chains(site="t1", relation="person_capital_correction")).scores()
    for method in (BackPatching, ChainOfThoughtPatchscope):
        with pytest.raises(NotApplicableError, match="end at the subject"):
            CrossFit(method, testing.small_bench()).scores()


@pytest.mark.parametrize("method", [BackPatching, ChainOfThoughtPatchscope])
def test_wrong_target_layers_are_refused(method: type) -> None:
    model = tiny.model()
    for given, expected in (("0,5", "layers 0 .embeddings. to 4; layer 5"), ("some", "expected all, stride:2")):
        with pytest.raises(UsageError, match=expected):
            method(given).check(Target(model), model)


def test_the_default_target_layer_is_a_quarter_of_the_depth() -> None:
    target = Target(tiny.model())
    assert spread_layers("m", "all", target) == (1, 0, 2, 3, 4)
    target.n_layers = 30
    assert spread_layers("m", "stride:4", target)[0] == 8
