"""Plain texts continued: against one text at a time, on several architectures."""

import pytest
import torch

from lensbench.models.activations import capture
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import continue_line, continue_texts, first_line, score_next_tokens
from lensbench.models.token_scores import COUNTED, ranks_of
from lensbench.models.tokens import Tokens
from tests.tiny import CONFIGS, model, module

TEXTS = (
    "The people",
    "We have seen in our time that the",
    "A",
    "We have seen in our time that the state of the union is",
    "The people",
)


def naive(one: LanguageModel, text: str, steps: int) -> str:
    ids = list(one.tokens.encode(text).ids)
    new: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            best = int(one.module(torch.tensor([ids + new])).logits[0, -1].argmax())
        if best in one.end_ids:
            break
        new.append(best)
    return one.tokens.decode(new)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_as_one_text_at_a_time(kind) -> None:
    one = model(kind)
    assert continue_texts(one, TEXTS, 6) == tuple(naive(one, text, 6) for text in TEXTS)


def test_a_model_that_cannot_be_padded_runs_equal_lengths(monkeypatch) -> None:
    one = LanguageModel(module("llama"), Tokens(model().tokens.tokenizer), "unpadded")
    generate = one.module.generate

    def strict(ids, attention_mask, **rest):
        assert bool(attention_mask.all()), "no padding here"
        return generate(ids, attention_mask=attention_mask, **rest)

    monkeypatch.setattr(one.module, "generate", strict)
    assert continue_texts(one, TEXTS, 6) == continue_texts(model(), TEXTS, 6)
    assert one.cache["proved", "pads_texts"] is False


def test_said_once(monkeypatch) -> None:
    one = model()
    first = continue_line(one, TEXTS, 5)
    assert first == tuple(first_line(text) for text in continue_texts(one, TEXTS, 5))
    monkeypatch.setattr("lensbench.models.prompting.continue_texts", lambda *_: pytest.fail("asked again"))
    assert continue_line(one, TEXTS, 5) == first


@pytest.mark.parametrize(("text", "line"), [("\n\nParis\nLima", "Paris"), (" a b ", "a b"), ("", ""), ("\n", "")])
def test_first_line(text, line) -> None:
    assert first_line(text) == line


def test_the_models_own_settings_of_generation_do_not_count() -> None:
    one = LanguageModel(module("llama"), Tokens(model().tokens.tokenizer), "penalised")
    one.module.generation_config.repetition_penalty = 5.0
    one.module.generation_config.no_repeat_ngram_size = 2
    assert continue_texts(one, TEXTS, 6) == continue_texts(model(), TEXTS, 6)
    assert one.module.generation_config.repetition_penalty == 5.0


def test_next_tokens_are_asked_once_in_any_order_and_of_these_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"The people of {place} have seen that" for place in ("London", "Paris", "Lima", "London")]
    calls: list[int] = []

    def counted(one, readings, layers):
        calls.append(len(readings))
        return capture(one, readings, layers)

    def naive(one: LanguageModel, text: str, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = one.module(torch.tensor([one.tokens.encode(text).ids])).logits[0, -1]
        return logits.log_softmax(0)[tokens]

    monkeypatch.setattr("lensbench.models.prompting.capture", counted)
    one, other = (LanguageModel(module("llama", seed), Tokens(model().tokens.tokenizer), "llama") for seed in (0, 1))
    asked = [
        (one, texts, [5, 9], 1), (one, texts[::-1], [5, 9], 1), (one, texts[:3], [5, 9], 1), (one, texts, [9, 5], 2),
        (one, texts[:2], [5, 9], 3), (one, [*texts, "Another text"], [5, 9], 4), (other, texts, [5, 9], 5),
    ]  # fmt: skip
    for who, given, tokens, passes in asked:
        expected = torch.stack([naive(who, text, tokens) for text in given])
        torch.testing.assert_close(score_next_tokens(who, given, tokens).log_probs, expected, rtol=1e-4, atol=1e-4)
        assert len(calls) == passes
    assert calls[0] == 3


@pytest.mark.parametrize("asked", [1, 30, COUNTED, COUNTED + 1])
def test_ranks_are_how_many_logits_are_larger(asked: int) -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    scores = logits[:, torch.arange(asked) % 500]
    expected = (logits[:, None] > scores[..., None]).sum(-1)
    assert torch.equal(ranks_of(logits, scores), expected)
