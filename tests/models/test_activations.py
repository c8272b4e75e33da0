"""Captured residuals: on the disk, within a limit, equal to those just captured; and learning that is cut off."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import UsageError
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.target import Target
from lensbench.models.activations import RESIDUALS_FILE, Reading, ResidualCache, capture, group_by_prefix
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Budget
from lensbench.models.optimization import TrainingSchedule
from lensbench.models.replay import SharedPrefixLayer
from lensbench.models.tokens import Tokens
from lensbench.utils import cache
from tests import tiny

LAYERS = (0, 2, 4)
READINGS = [Reading(tuple(range(20, 20 + length))) for length in (5, 9, 5, 7, 3)] + [Reading(tuple(range(30, 34)))]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the passes of models."""
    passes: list[int] = []
    original = LanguageModel.residuals

    def residuals(self: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(ids))
        return original(self, ids, *rest)

    monkeypatch.setattr(LanguageModel, "residuals", residuals)
    return passes


def test_a_source_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    fresh = capture(model, READINGS, LAYERS)
    passes = counted(monkeypatch)
    first = ResidualCache(tmp_path).read(model, READINGS, LAYERS)
    assert sum(passes) == len(set(READINGS)), "one row a distinct source"
    second = ResidualCache(tmp_path).read(model, READINGS, LAYERS)
    assert sum(passes) == len(set(READINGS))
    for kept in (first, second):
        assert torch.equal(kept.values, fresh.values)
        assert kept.layers == LAYERS


def test_other_models_sources_and_layers_are_kept_apart(tmp_path: Path) -> None:
    kept = ResidualCache(tmp_path)
    kept.read(tiny.model("llama"), READINGS, LAYERS)
    for model, readings, layers in (
        (tiny.model("qwen2"), READINGS, LAYERS),
        (tiny.model("llama"), READINGS[1:], LAYERS),
        (tiny.model("llama"), READINGS, LAYERS[1:]),
    ):
        before = len(list(tmp_path.iterdir()))
        assert torch.equal(kept.read(model, readings, layers).values, capture(model, readings, layers).values)
        assert len(list(tmp_path.iterdir())) == before + 1


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    model = tiny.model("llama")
    roomy = ResidualCache(tmp_path, limit=2**30)
    for layer in (0, 1, 2):
        roomy.read(model, READINGS, (layer,))
        time.sleep(0.01)
    size = max(cache.folder_size(path) for path in tmp_path.iterdir())
    roomy.read(model, READINGS, (0,))  # now layer 1 was read longest ago
    kept = {path.name for path in tmp_path.iterdir()}
    ResidualCache(tmp_path, limit=3 * size).read(model, READINGS, (3,))
    after = {path.name for path in tmp_path.iterdir()}
    assert len(after) == 3
    assert len(kept - after) == 1
    (tmp_path / (kept & after).pop() / RESIDUALS_FILE).stat()
    before = len(after)
    roomy.read(model, READINGS, (0,))
    assert len(list(tmp_path.iterdir())) == before, "layer 0 was still there"


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = ResidualCache(tmp_path, limit=10).read(tiny.model("llama"), READINGS, LAYERS).values
    assert values.shape == (3, len(READINGS), 32)
    assert not list(tmp_path.iterdir())
    assert "are not kept" in caplog.text


def test_a_full_disk_keeps_nothing_and_says_so(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lensbench.models.activations.save_file", full)
    model = tiny.model("llama")
    read = ResidualCache(tmp_path).read(model, READINGS, LAYERS)
    assert torch.equal(read.values, capture(model, READINGS, LAYERS).values)
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_capture_does_not_depend_on_batches() -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    whole = capture(model, READINGS, LAYERS)
    model.budget = Budget(1, model.device)
    torch.testing.assert_close(capture(model, READINGS, LAYERS).values, whole.values, rtol=1e-5, atol=1e-5)


def test_the_cache_is_shown_and_cleared(isolated_cache: Path) -> None:
    folder = isolated_cache / cache.RESIDUALS
    ResidualCache(folder).read(tiny.model("llama"), READINGS, LAYERS)
    number, size = cache.contents()[cache.RESIDUALS]
    assert number == 1
    assert size > 3 * len(READINGS) * 32 * 4
    assert cache.clear([cache.RESIDUALS, cache.LENSES]) == size
    assert cache.contents()[cache.RESIDUALS] == (0, 0)


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("1KB", 1024), ("1.5 GB", 3 * 2**29), ("20GiB", 20 * 2**30), ("3m", 3 * 2**20)]
)
def test_sizes(text: str, size: int) -> None:
    assert cache.parse_size(text) == size


def test_a_wrong_limit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE_LIMIT", "plenty")
    with pytest.raises(UsageError, match="LENSBENCH_CACHE_LIMIT = 'plenty': is no size"):
        cache.size_limit()


class Cut(Exception):  # noqa: N818 - stands for a process that ends
    pass


def test_learning_that_was_cut_off_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensbench.models.optimization.SAVE_EVERY_SECONDS", 0.0)
    model = tiny.model("llama")
    corpus = Corpus(model, cache=tmp_path)
    target, lens = Target(model), TunedLens(tokens=1024, steps=6)
    whole = TunedLens(tokens=1024, steps=6).fit(target, model, Training(corpus=Corpus(model)))
    original = TrainingSchedule.steps

    def steps(self: TrainingSchedule, total: int, learner: Any) -> Any:
        for step in original(self, total, learner):
            if step == 4:
                raise Cut
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(TrainingSchedule, "steps", steps)
        with pytest.raises(Cut):
            lens.fit(target, model, Training(corpus=corpus))
    assert [path.name[:1] for path in tmp_path.iterdir()] == ["."], "what was begun is kept, and hidden"
    made: list[int] = []

    def noted(self: TrainingSchedule, total: int, learner: Any) -> Any:
        for step in original(self, total, learner):
            made.append(step)
            yield step

    monkeypatch.setattr(TrainingSchedule, "steps", noted)
    lens.fit(target, model, Training(corpus=corpus))
    assert made == [4, 5]
    assert torch.equal(lens.weight_, whole.weight_)
    assert torch.equal(lens.bias_, whole.bias_)
    assert [path.name[:1] == "." for path in tmp_path.iterdir()] == [False]


OPENING = tuple(range(20, 40))
ENDS = [tuple(40 + (7 * i + step) % 90 for step in range(1 + i % 3)) for i in range(24)]
ALIKE = [*(Reading(OPENING + end) for end in ENDS), *(Reading(tuple(range(90, 90 + length))) for length in (4, 8, 5))]


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_what_texts_begin_with_is_run_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(tiny.module(kind), Tokens(tiny.tokenizer()), kind)
    assert [group.prefix for group in group_by_prefix(list(dict.fromkeys(r.ids for r in ALIKE)))] == [0, 20]
    together = capture(model, ALIKE, LAYERS).values
    assert model.cache["proved", "shares_prefixes"] == (kind not in tiny.HYBRIDS)
    alone = torch.cat([capture(model, [reading], LAYERS).values for reading in ALIKE], dim=1)
    assert (together - alone).abs().max() < 2e-4 * alone.abs().max()
    passes = counted(monkeypatch)
    capture(model, ALIKE, LAYERS)
    assert sum(passes) == len(set(ALIKE)), "one row a distinct source"


def test_a_model_whose_prefix_cannot_be_shared_runs_whole_texts(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    whole = torch.cat([capture(model, [reading], LAYERS).values for reading in ALIKE], dim=1)
    original = SharedPrefixLayer.get_seq_length
    monkeypatch.setattr(SharedPrefixLayer, "get_seq_length", lambda self: original(self) + 1)  # wrong positions
    read = capture(model, ALIKE, LAYERS).values
    assert "texts are run whole" in caplog.text
    torch.testing.assert_close(read, whole, rtol=2e-4, atol=2e-4)


texts = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=60).map(tuple), min_size=1, max_size=80, unique=True)
openings = st.lists(st.integers(0, 2), min_size=20, max_size=40).map(tuple)


@given(texts, openings, openings)
@settings(max_examples=80, deadline=None)
def test_groups_hold_every_text_once_and_what_they_share(some: list, one: tuple, other: tuple) -> None:
    every = list(dict.fromkeys([*some, *(one + text for text in some), *(one + other + text for text in some)]))
    groups = group_by_prefix(every)
    assert sorted(text for group in groups for text in group.texts) == sorted(every)
    for group in groups:
        assert len({text[: group.prefix] for text in group.texts}) == 1
        assert all(len(text) > group.prefix for text in group.texts)
        assert [len(text) for text in group.texts] == sorted(len(text) for text in group.texts)
    run = sum(group.prefix + sum(len(text) - group.prefix for text in group.texts) for group in groups)
    assert run <= sum(map(len, every)), "never more tokens than without"
