"""Prose: lenses beside the model, against a naive reference on a tiny model."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lensbench import evaluate
from lensbench.errors import LensbenchError
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.next_token import POSITIONS, ProseBench, make_prose_bench, positions_of
from lensbench.inspectors.evidence import NotApplicableError
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.probes.probe import Probe
from lensbench.models.corpus import Corpus
from lensbench.tasks import load_task
from tests.tiny import model, module

FIGURES = True


@pytest.fixture(scope="module")
def bench() -> ProseBench:
    task = load_task("next_token")
    small = model()
    lab = RunContext(small, small, Corpus(small), tuple(range(small.n_layers + 1)), seed=0)
    passages = [item for item in task.items("answer", "test", 6) if item.relation == "speeches"]
    return make_prose_bench(lab, task.relations["speeches"], passages)


def test_positions_are_those_of_the_passage(bench) -> None:
    task, small = load_task("next_token"), model()
    passage = task.items("answer", "test", 2)[0]
    ids = small.tokens.encode(passage.source).ids
    found = list(positions_of(small, passage))
    assert 0 < len(found) <= POSITIONS
    for item, after in found:
        place = int(item.id.rpartition("@")[2])
        assert small.tokens.encode(item.source).ids == ids[: place + 1]
        assert after.tokens == ids[place + 1 : place + 5]
        assert passage.source.startswith(item.source)
        assert after.n_bytes > 0


def word(token: int) -> str:
    return model().tokens.decode([token]) or f"<{token}>"


def test_scores_are_those_of_a_naive_reference(bench) -> None:
    found = CrossFit(LogitLens, bench).scores()
    plain = module("llama")
    norm, head = plain.model.norm, plain.lm_head
    for i, item in enumerate(bench.items):
        ids = torch.tensor([model().tokens.encode(item.source).ids])
        with torch.no_grad():
            out = plain(ids, output_hidden_states=True)
            p = out.logits[0, -1].double().log_softmax(0)
            gold = int(p.argmax())
            # The last of transformers' hidden states is normed already.
            for layer, state in enumerate(out.hidden_states[:-1]):
                q = head(norm(state[0, -1])).double().log_softmax(0)
                assert found.texts[layer, 0, i] == word(int(q.argmax()))
                assert found.ranks[layer, 0, i, 0] == int((q > q[gold]).sum())
                assert float(found.log_scores[layer, 0, i, 0]) == pytest.approx(float(q[gold]), abs=1e-4)
                assert found.measures["kl"][layer, 0, i] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)
                following = bench.following[item.id].tokens[0]
                assert found.measures["surprisal"][layer, 0, i] == pytest.approx(-float(q[following]), abs=1e-4)
        assert found.golds[0, i] == word(gold)


def test_the_last_layer_is_the_model(bench) -> None:
    found = CrossFit(LogitLens, bench).scores()
    assert (found.ranks[-1] == 0).all()
    assert np.abs(found.measures["kl"][-1]).max() < 1e-5
    assert abs(found.totals["marginal_bias"][-1, 0]) < 1e-5
    assert (found.measures["kl"][:-1] > -1e-6).all()


def test_bits_per_byte_is_all_bits_over_all_bytes(bench) -> None:
    found = CrossFit(LogitLens, bench).scores()
    n_bytes = sum(bench.following[item.id].n_bytes for item in bench.items)
    bits = found.measures["surprisal"][:, 0].sum(axis=1) / math.log(2)
    assert found.measures["bits_per_byte"][:, 0].mean(axis=1) == pytest.approx(bits / n_bytes)


def test_a_constant_lens_has_the_bias_of_its_constant(bench) -> None:
    def same(residuals):
        return type(residuals)(residuals.layers, residuals.values[:, :1].expand_as(residuals.values))

    found = CrossFit(LogitLens, bench).with_activations(same).scores()
    assert (found.texts == found.texts[:, :, :1]).all()
    assert (found.totals["marginal_bias"][:-1] > 0).all()


@pytest.mark.parametrize("method", [Patchscope, Probe])
def test_only_lenses_are_asked(bench, method) -> None:
    with pytest.raises(NotApplicableError, match="distribution over the vocabulary"):
        CrossFit(method, bench).scores()


def test_in_a_run(tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path) -> None:
    run = evaluate(
        str(tiny_llama_folder),
        tasks=("next_token",),
        inspectors=("logit_lens", "patchscope"),
        limit=10,
        out=tmp_path / "run",
    )
    assert not run.failed
    assert {"speeches", "profiles"} == set(run.records.relation.astype(str))
    last = run.records[(run.records.layer == 2) & (run.records.baseline == "none")]
    assert (last.correct == 1).all()
    metrics = __import__("pandas").read_csv(run.path / "metrics.csv")
    assert {"kl", "surprisal", "bits_per_byte", "marginal_bias"} <= set(metrics.metric)
    own = metrics[(metrics.metric == "kl") & (metrics.baseline == "none") & (metrics.relation == "speeches")]
    measured = run.measures[(run.measures.metric == "kl") & (run.measures.baseline == "none")]
    first = measured[(measured.layer == 0) & (measured.relation == "speeches")]
    assert float(own[own.layer == 0].value.iloc[0]) == pytest.approx(float(first.value.mean()))
    assert "answers the relation" not in str(run.unanswered)
    assert any("patchscope" in name for name in run.unanswered)
    # No rival that reads the text has anything to say: nothing is said of beating it.
    assert "beats_text" not in set(run.summary[run.summary.baseline == "none"].question)
    verdicts = set(run.summary[run.summary.question == "uses_activation"].verdict.dropna())
    assert not any("input_only" in str(verdict) for verdict in verdicts)


def test_measures_that_are_lost_are_made_again(tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path) -> None:
    asked = {
        "tasks": ("next_token",),
        "inspectors": ("logit_lens",),
        "baselines": (),
        "limit": 4,
        "out": tmp_path / "r",
    }
    evaluate(str(tiny_llama_folder), **asked)
    (file,) = (tmp_path / "r" / "measures").iterdir()
    before = file.read_bytes()
    file.unlink()
    again = evaluate(str(tiny_llama_folder), **asked)
    assert file.read_bytes() == before
    assert len(again.measures)


def test_passages_that_are_too_short_are_refused(bench) -> None:
    task = load_task("next_token")
    item = replace(task.items("answer", "test", 2)[0], source="Too short")
    assert list(positions_of(model(), item)) == []
    with pytest.raises(LensbenchError, match="no passage has 13 tokens or more"):
        make_prose_bench(bench.context, task.relations["speeches"], [item])


@pytest.mark.parametrize("length", range(8, 17))
def test_every_length_of_passage_is_cut_or_left(length) -> None:
    small, task = model(), load_task("next_token")
    whole = task.items("answer", "test", 2)[0]
    encoding = small.tokens.encode(whole.source)
    item = replace(whole, source=whole.source[: encoding.offsets[length - 1][1]])
    ids = small.tokens.encode(item.source).ids
    for cut, after in positions_of(small, item):
        assert after.tokens[0] == ids[int(cut.id.rpartition("@")[2]) + 1]


def test_bytes_add_up_to_the_text(bench) -> None:
    small = model()
    passage = load_task("next_token").items("answer", "test", 2)[0]
    encoding = small.tokens.encode(passage.source)
    for item, after in positions_of(small, passage):
        place = int(item.id.rpartition("@")[2])
        rest = passage.source[: encoding.offsets[place + 1][1]]
        assert len(rest.encode()) - len(item.source.encode()) == after.n_bytes
