"""What is kept of a model between runs: served to the same model alone, tried again, made anew where that fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lensbench.models import proofs
from lensbench.models.activations import Reading, capture
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import Patcher, Prompt
from lensbench.models.proofs import describe, keep_proofs, proved
from lensbench.models.tokens import Tokens
from lensbench.utils.cache import write_sealed
from tests import tiny

PROMPT = Prompt(tuple(range(20, 31)), 6)


def fresh(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model of its own, with an empty memory."""
    return keep_proofs(LanguageModel(tiny.module(kind, seed).to(dtype), Tokens(tiny.tokenizer()), kind))


def never() -> str:
    raise AssertionError("proved again")


def one_file(cache: Path) -> Path:
    (file,) = (cache / "proofs").glob("*.json")
    return file


def test_the_same_model_finds_it_again_and_no_other_does(isolated_cache: Path) -> None:
    assert proved(fresh(), "x", lambda: "shared") == "shared"
    assert proved(fresh(), "x", never) == "shared"
    one_file(isolated_cache)
    for other, what in ((fresh(seed=1), "x"), (fresh(dtype=torch.bfloat16), "x"), (fresh("gpt2"), "x"), (fresh(), "y")):
        assert proved(other, what, lambda: "plain") == "plain"
    assert proved(fresh(), "x", never) == "shared"


def test_one_changed_weight_is_another_model(isolated_cache: Path) -> None:
    proved(fresh(), "x", lambda: "shared")
    changed = tiny.module("llama")
    with torch.no_grad():
        next(changed.parameters()).view(-1)[17] += 1e-6
    model = keep_proofs(LanguageModel(changed, Tokens(tiny.tokenizer()), "llama"))
    assert proved(model, "x", lambda: "plain") == "plain"


@pytest.mark.parametrize("what", sorted(describe(tiny.model("llama"))))
def test_it_depends_on_every_circumstance(what: str, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved(fresh(), "x", lambda: "shared")
    original: Callable[[LanguageModel], dict[str, str]] = proofs.describe
    monkeypatch.setattr(proofs, "describe", lambda model: {**original(model), what: "another"})
    assert proved(fresh(), "x", lambda: "plain") == "plain"


def test_without_a_folder_nothing_is_kept(isolated_cache: Path) -> None:
    model = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "llama")
    assert proved(model, "x", lambda: "shared") == proved(model, "x", never) == "shared"
    assert not isolated_cache.exists()


@pytest.mark.parametrize("damage", ["found", "depends", "cut", "no object"])
def test_a_damaged_file_is_not_used(damage: str, isolated_cache: Path) -> None:
    proved(fresh(), "x", lambda: "shared")
    file = one_file(isolated_cache)
    content = json.loads(file.read_text())
    if damage == "found":
        content["content"]["found"] = "layer_start"
    if damage == "depends":
        content["content"]["depends"]["fingerprint"] = "another"
    text = json.dumps([content] if damage == "no object" else content)
    file.write_text(text[:40] if damage == "cut" else text)
    assert proved(fresh(), "x", lambda: "plain") == "plain"
    assert proved(fresh(), "x", never) == "plain"


def test_what_no_longer_holds_is_proved_anew(isolated_cache: Path) -> None:
    proved(fresh(), "x", lambda: "shared")
    assert proved(fresh(), "x", lambda: "plain", lambda found: found != "shared") == "plain"
    assert proved(fresh(), "x", never, lambda found: found != "shared") == "plain"


def test_a_folder_that_cannot_be_written_is_no_error(isolated_cache: Path) -> None:
    isolated_cache.mkdir()
    (isolated_cache / "proofs").write_text("a file")
    assert proved(fresh(), "x", lambda: 3) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_later_run_tries_the_patched_pass_on_two_rows_alone(
    kind: str, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, layers = torch.randn(3, fresh(kind).d_model), torch.tensor([0, 1, 2])
    first = Patcher(fresh(kind))
    scores, texts = first.score(PROMPT, vectors, layers, [5, 6]), first.generate(PROMPT, vectors, layers, 4)
    for name in ("fastest_mode", "fastest_sharing"):
        monkeypatch.setattr(f"lensbench.models.patching.patcher.{name}", lambda *_: never())
    later = Patcher(fresh(kind))
    assert torch.equal(later.score(PROMPT, vectors, layers, [5, 6]).log_probs, scores.log_probs)
    assert later.generate(PROMPT, vectors, layers, 4) == texts
    assert (later.mode, later.sharing) == (first.mode, first.sharing) == ("shared", "shared")


def test_a_mode_that_the_model_does_not_allow_is_found_out(isolated_cache: Path) -> None:
    """As if another version had proved too much: a state-space model cannot share a prefix."""
    honest = Patcher(fresh("mamba"))
    honest.proved_mode(PROMPT)
    assert honest.mode != "shared"
    file = one_file(isolated_cache)
    content = json.loads(file.read_text())["content"]
    write_sealed(file, {**content, "found": "shared"})
    assert Patcher(fresh("mamba")).proved_mode(PROMPT) == honest.mode


def test_prefixes_are_shared_by_what_was_proved_before(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tuple(range(20, 60))
    texts = [Reading((*start, 100 + i, 200 + i)) for i in range(12)]
    naive = torch.cat([capture(fresh(), [text], (4,)).values for text in texts], dim=1)
    torch.testing.assert_close(capture(fresh(), texts, (4,)).values, naive, rtol=1e-4, atol=1e-4)
    later = fresh()
    tried: list[int] = []
    monkeypatch.setattr(
        "lensbench.models.activations._shares_prefixes", lambda _m, _g, texts=8: tried.append(texts) or True
    )
    torch.testing.assert_close(capture(later, texts, (4,)).values, naive, rtol=1e-4, atol=1e-4)
    assert tried == [2]
