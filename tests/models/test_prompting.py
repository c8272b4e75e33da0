"""Plain texts gone on with: against one text at a time, on several architectures."""

import pytest
import torch

from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import continue_line, continue_texts, first_line
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
