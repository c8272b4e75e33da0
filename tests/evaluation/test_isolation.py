"""Each fold in a process of its own: the same records of honest methods, and notes that find no reader."""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lensbench import evaluate, testing
from lensbench.calibration.stateful_cheats import (
    FrozenIndex,
    NearestNeighbour,
    NotesInAFile,
    NotesInAModule,
    SharedIndex,
    TurncoatIndex,
)
from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.harness import processes
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.isolated_fits import IsolatedFits
from lensbench.harness.isolation import SealedError
from lensbench.harness.mapped import Arrays
from lensbench.harness.passing import Receiver
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.catalog import load_inspector
from lensbench.inspectors.evidence import Evidence, Training, WithheldError
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.prompting import score_next_tokens
from lensbench.testing.benches import fresh_bench
from tests import tiny

METHODS = {
    "probe": {}, "linear_probe": {}, "logit_lens": {}, "patchscope": {"target_layers": (1, 0)},
    "tuned_lens": {"tokens": 512, "steps": 1}, "logit_attribution": {}, "attribute_lens": {"n": 2},
}  # fmt: skip


@pytest.fixture
def isolated() -> Iterator[IsolatedFits]:
    arrays = Arrays()
    made = IsolatedFits(arrays)
    yield made
    made.close()
    arrays.close()
    assert not arrays.folder.exists()


def pair(model: LanguageModel) -> Bench:
    """Two subjects, read by a model."""
    return testing.make_bench(model, Corpus(model), testing.Subjects(("Bo", "Cy"), ("tea", "wine")), (0, 4))


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_the_same_to_the_last_digit(name: str, isolated: IsolatedFits) -> None:
    """Of methods that learn labels, prose or nothing, that read one residual, parts of blocks, or run the target."""
    make = partial(load_inspector(name), **METHODS[name])
    whole, apart = (CrossFit(make, testing.small_bench(), isolated=one) for one in (None, isolated))
    expected, found = whole.scores(), apart.scores()
    assert found.attempts == expected.attempts
    assert all(isinstance(one, AttemptName) for one in found.attempts) == (name == "patchscope")
    assert torch.equal(found.log_scores, expected.log_scores)
    if expected.ranks is not None:
        assert torch.equal(found.ranks, expected.ranks)
    assert (apart.costs.tokens, apart.costs.items) == (whole.costs.tokens, whole.costs.items)
    assert apart.costs.memory > 0


@pytest.mark.parametrize("make", [SharedIndex, FrozenIndex, TurncoatIndex, NotesInAFile, NotesInAModule])
def test_notes_are_of_no_use(make: type[Inspector], isolated: IsolatedFits) -> None:
    bench = fresh_bench(testing.small_bench())
    honest = CrossFit(NearestNeighbour, bench).scores()
    assert torch.equal(CrossFit(make, bench, isolated=isolated).scores().log_scores, honest.log_scores)
    if make in (SharedIndex, NotesInAFile, NotesInAModule):
        assert not torch.equal(CrossFit(make, bench).scores().log_scores, honest.log_scores)


def test_an_interpreter_for_each_does_the_same(isolated: IsolatedFits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a system cannot fork."""
    monkeypatch.setattr(processes, "FORKS", False)
    found = CrossFit(LogitLens, testing.small_bench(), isolated=isolated).scores()
    assert torch.equal(found.log_scores, CrossFit(LogitLens, testing.small_bench()).scores().log_scores)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "bloom", "gemma2", "mixtral", "qwen3"])
def test_models_arrive_whole(kind: str, isolated: IsolatedFits) -> None:
    model = tiny.model(kind)
    bench = testing.make_bench(
        model, testing.small_bench().context.corpus, testing.Subjects(("Bo", "Cy"), ("tea", "wine")), (0, 4)
    )
    make = partial(load_inspector("patchscope"))
    found = CrossFit(make, bench, isolated=isolated).scores()
    assert torch.equal(found.log_scores, CrossFit(make, bench).scores().log_scores)


def test_models_whose_hidden_states_were_asked_for_arrive_whole(isolated: IsolatedFits) -> None:
    """transformers has put hooks on them, which cannot be passed, and puts them on again where they are needed."""
    model = LanguageModel(tiny.module("llama"), tiny.model("llama").tokens, "hooked")
    ids = torch.tensor([[3, 5, 7]])
    model.module(ids, output_hidden_states=True)
    bench = testing.make_bench(model, Corpus(model), testing.Subjects(("Bo", "Cy"), ("tea", "wine")), (0, 4))
    make = partial(load_inspector("patchscope"))
    found = CrossFit(make, bench, isolated=isolated).scores()
    assert torch.equal(found.log_scores, CrossFit(make, bench).scores().log_scores)
    arrays = Arrays()
    with arrays.file_of(model, without_blocks=False).open("rb") as file:
        again = Receiver(file, {}, lambda *_: None).load()
    states, expected = (one.module(ids, output_hidden_states=True).hidden_states for one in (again, model))
    assert len(states) == len(expected) == 5
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
    arrays.close()


class Reaches(Inspector):
    """Does something that it must not, by name."""

    name = "reaches"

    def __init__(self, what: str) -> None:
        self.what = what

    def inspect(self, evidence: Evidence) -> Scores:
        if self.what == "text":
            evidence.texts  # noqa: B018 - it raises
        if self.what == "target":
            score_next_tokens(self.target_._model, ["They like"], [5])
        if self.what == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "not applicable":
            raise NotApplicableError("no reason")
        if self.what == "code":
            return eval  # type: ignore[return-value]
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("text", WithheldError, "the evidence has no `texts`"),
        ("target", SealedError, "the method ran small-random-llama without declaring it"),
        ("exit", LensbenchError, "ended before it had answered"),
        ("not applicable", NotApplicableError, "no reason"),
        ("code", LensbenchError, "sent builtins.eval, which is no result"),
        ("other", ZeroDivisionError, "division by zero"),
    ],
)
def test_what_goes_wrong_there_is_told_here(
    what: str, error: type[Exception], says: str, isolated: IsolatedFits
) -> None:
    bench = testing.small_bench()
    if what == "target":
        # Another verbalizer: of one model for both it cannot be told which is run.
        bench = pair(bench.context.model).with_verbalizer(tiny.model("llama"))
    with pytest.raises(error, match=says):
        CrossFit(partial(Reaches, what), bench, isolated=isolated).scores()


class WritesIntoItsInput(Inspector):
    """Changes the arrays that it is given."""

    name = "writes_into_its_input"
    learns_from = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "WritesIntoItsInput":
        training.residuals.values.zero_()
        target._model.module.get_input_embeddings().weight.data.zero_()
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        found = evidence.residuals.values.sum(-1)[:, None, :, None].expand(-1, -1, -1, len(evidence.answers)).clone()
        evidence.residuals.values.zero_()
        return Scores(("default",), found)


def test_what_a_method_writes_nobody_else_sees(isolated: IsolatedFits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensbench.harness.mapped.SMALL", 1)  # every array is mapped
    bench = testing.small_bench()
    before = bench.residuals.values.clone(), bench.train_residuals.values.clone()
    embeddings = bench.context.model.module.get_input_embeddings().weight.clone()
    method = CrossFit(WritesIntoItsInput, bench, isolated=isolated)
    first = method.scores()
    assert torch.equal(
        first.log_scores[..., 0].squeeze(1), bench.residuals.at_layers(bench.context.layers).values.sum(-1)
    )
    assert torch.equal(method.scores().log_scores, first.log_scores)
    assert torch.equal(bench.residuals.values, before[0])
    assert torch.equal(bench.train_residuals.values, before[1])
    assert torch.equal(bench.context.model.module.get_input_embeddings().weight, embeddings)


def test_a_run_has_the_same_records(tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path) -> None:
    asked = {
        "model": str(tiny_llama_folder), "tasks": ("attribute_extraction/country_continent",), "sites": ("subject",),
        "inspectors": ("probe", "logit_lens"), "limit": 15,
        "baselines": ("shuffled", "random_model", "control_task", "input_only"),
    }  # fmt: skip
    whole, apart = (evaluate(**asked, isolate=one, out=tmp_path / str(one)) for one in (False, True))
    assert not whole.failed
    assert not apart.failed
    names = [file.name for file in sorted((whole.path / "records").iterdir())]
    assert len(names) == 6
    for name in names:
        assert (apart.path / "records" / name).read_bytes() == (whole.path / "records" / name).read_bytes(), name


class Leaves(Inspector):
    """Begins another process, and has something done at the end of its own."""

    name = "leaves"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def inspect(self, evidence: Evidence) -> Scores:
        begun = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        begun.start()
        atexit.register(Path(self.folder, "ended").write_text, str(begun.pid))
        return Scores(("default",), torch.zeros(len(evidence.layers), 1, evidence.n_items, len(evidence.answers)))


@pytest.mark.skipif(not processes.FORKS, reason="processes are not forked")
def test_what_a_method_has_begun_ends_with_it(isolated: IsolatedFits, tmp_path: Path) -> None:
    CrossFit(partial(Leaves, str(tmp_path)), testing.small_bench(), isolated=isolated).scores()
    isolated.close()
    until = time.monotonic() + 30
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    pid = int((tmp_path / "ended").read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


class KnowsOneRelation(Inspector):
    """Answers questions about the continent alone."""

    name = "knows_one_relation"
    reads = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Refuse other questions."""
        if "continent" not in evidence.question:
            raise NotApplicableError("it knows continents alone")
        return Scores(("default",), torch.zeros(len(evidence.layers), 1, evidence.n_items, len(evidence.answers)))


def test_what_one_relation_lacks_the_others_have(tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path) -> None:
    relations = [f"attribute_extraction/country_{one}" for one in ("continent", "capital")]
    asked = {
        "tasks": relations, "sites": "subject", "inspectors": [KnowsOneRelation], "limit": 30, "layers": "0,2",
        "baselines": "mean,shuffled",
    }  # fmt: skip
    runs = [evaluate(str(tiny_llama_folder), **asked, isolate=one, out=tmp_path / str(one)) for one in (False, True)]
    assert runs[0].unanswered == runs[1].unanswered != {}
    assert set(runs[1].records["relation"]) == {"country_continent"}


def test_baselines_of_other_methods_are_not_asked(
    tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path
) -> None:
    """A verbalizer of another width has nothing that could be shown to a method which reads the target."""
    model = load_model(str(tiny_llama_folder))
    config = LlamaConfig(
        vocab_size=model.vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    wide = load_model(LlamaForCausalLM(config), tokenizer=model.tokens.tokenizer)
    asked = {"tasks": "attribute_extraction/country_capital", "sites": "subject", "inspectors": "logit_lens"}
    run = evaluate(model, verbalizer=wide, **asked, limit=12, layers="0,2", isolate=True, out=tmp_path / "run")
    assert not run.failed
    assert {"none", "mean", "gaussian", "embedding"} <= set(run.records["baseline"])


class CountsRows(Inspector):
    """Answers by how many rows it is shown at once: items and baselines can be told apart where they come apart."""

    name = "counts_rows"

    def inspect(self, evidence: Evidence) -> Scores:
        """Give the first answer the number of rows."""
        scores = torch.zeros(len(evidence.layers), 1, evidence.n_items, len(evidence.answers))
        scores[..., 0] = float(evidence.n_items)
        return Scores(("default",), scores)


def test_a_method_cannot_tell_its_items_from_those_of_baselines(
    tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path
) -> None:
    asked = {
        "tasks": "attribute_extraction/country_continent", "sites": "subject", "inspectors": [CountsRows],
        "limit": 15, "baselines": "mean,gaussian,embedding,wrong_position", "layers": "0,1,2",
    }  # fmt: skip
    run = evaluate(str(tiny_llama_folder), **asked, isolate=True, out=tmp_path / "run")
    assert not run.failed
    first = run.records[run.records["gold"] == min(run.records["gold"])]
    at_one = first[first["layer"] == 2].groupby("baseline", observed=True)["gold_log_prob"].unique()
    assert set(at_one.index) == {"none", "mean", "gaussian", "wrong_position"}
    # 15 items, their mean, noise for each, and the places before them, which may be the same.
    assert len({tuple(values) for values in at_one}) == 1
    assert at_one["none"][0] > 2 * 15


def test_isolation_and_a_model_on_several_devices_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="isolate passes whole models to processes"):
        evaluate("smollm2-135m", isolate=True, device_map="auto")


@pytest.mark.parametrize(
    "given",
    [
        torch.randn(3, 4).T, torch.randn(4, 6)[:, ::2], torch.randn(3, 1).expand(3, 5), torch.tensor(2.5),
        torch.empty(0, 3), torch.tensor([True, False]), torch.randn(2, 3).bfloat16(), torch.arange(5),
    ],
    ids=["transposed", "every second", "expanded", "number", "empty", "bool", "bfloat16", "int"],
)  # fmt: skip
@pytest.mark.parametrize("small", [0, 2**16])
def test_arrays_arrive_as_they_are(
    given: torch.Tensor, small: int, monkeypatch: pytest.MonkeyPatch, isolated: IsolatedFits
) -> None:
    monkeypatch.setattr("lensbench.harness.mapped.SMALL", small)
    process = processes.Process(isolated.arrays)
    found = process.call(torch.clone, given)
    process.close()
    assert found.dtype == given.dtype
    assert torch.equal(found, given)
    assert np.array_equal(found.float().numpy(), given.float().numpy())
