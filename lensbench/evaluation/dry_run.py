"""What a run will take: each cell is tried on a few items, and the times are scaled to all of them."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.journal import Journal, folder_of_run, with_earlier_budget
from lensbench.evaluation.plan import Cell, Place, check_job
from lensbench.evaluation.runner import Runner
from lensbench.harness.bench import Bench, layers_shown
from lensbench.harness.crossfit import CrossFit, Fits
from lensbench.models.activations import ResidualCache
from lensbench.models.corpus import WINDOW, WINDOWS_PER_BATCH, Corpus
from lensbench.models.loading import with_random_weights
from lensbench.models.optimization import Resumable, TrainingSchedule
from lensbench.results.records import NO_BASELINE, frame_of
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summarise
from lensbench.results.verdicts import DIAGNOSTIC
from lensbench.utils.costs import peak_memory

TRIAL_ITEMS = 5
WARM_ITEMS = 2
TRIAL_STEPS = 2
# A run folder besides its records: summary, metrics, plots, journal.
OTHER_FILES = 3 * 2**20
PLOT_SECONDS = 3.0


@dataclass(frozen=True)
class Estimate:
    """What the cells of a plan that are still to be made will take.

    Attributes:
        cells: seconds by cell.
        preparing: seconds for what is learned once a run.
        finishing: seconds for summary and plots.
        memory: bytes that the process will hold at most.
        disk: bytes that the run folder and the cache will grow by.
    """

    cells: Mapping[Cell, float]
    preparing: float
    finishing: float
    memory: int
    disk: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.cells.values()) + self.preparing + self.finishing


class _TrialLearning(TrainingSchedule):
    """Makes the first steps only, and adds up what the others would take."""

    def __init__(self, corpus: "_TrialCorpus") -> None:
        super().__init__(None, corpus.device)
        self._corpus = corpus

    def steps(self, total: int, learner: Resumable) -> Iterator[int]:
        """Yield two steps; the first is slower than the others."""
        start = time.perf_counter()
        for step in range(min(total, TRIAL_STEPS)):
            start = time.perf_counter()
            yield step
        self._corpus.left_out += max(0, total - TRIAL_STEPS) * (time.perf_counter() - start)


class _TrialCorpus(Corpus):
    """Reads the first batch only, and adds up what the others would take.

    Attributes:
        left_out: seconds.
    """

    def __init__(self, runner: Runner, corpus: Corpus) -> None:
        super().__init__(runner.context.model, corpus.path, corpus.cache)
        self.device = runner.context.model.device
        self.left_out = 0.0

    def residuals_in_windows(
        self, tokens: int, *, skip: int = 0
    ) -> Iterator[Float[Tensor, "layer window position d_model"]]:
        """Yield one batch."""
        given = min(tokens, WINDOW * WINDOWS_PER_BATCH)
        start = time.perf_counter()
        yield from super().residuals_in_windows(given, skip=skip)
        # What is done with a batch between two of them belongs to it.
        self.left_out += (time.perf_counter() - start) * (tokens / max(1, given) - 1)

    def learn_once(
        self, learner: type, parameters: Mapping[str, object], learn: Callable[[TrainingSchedule], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Take what is in the cache; else learn a little, and keep nothing."""
        folder, _ = self.folder_of(learner, parameters)
        if folder is not None and folder.exists():
            return super().learn_once(learner, parameters, learn)
        return learn(_TrialLearning(self))


def estimate(runner: Runner, missing: list[Cell]) -> Estimate:
    """Try what each missing cell does on a few items of one relation of each kind, at one site of its task, and scale.

    What needs labels is fitted on all training items of these relations. Nothing is written.

    Raises:
        LensbenchError: a cell fails on these items.
    """
    fitted: dict[str, Fits] = {}
    places: dict[Place, list[_SampledBench]] = {}
    for place in dict.fromkeys(cell.place for cell in missing if runner.benches[cell.place]):
        corpus = _TrialCorpus(runner, runner.benches[place][0].context.corpus)
        places[place] = list(_sampled_benches(runner.benches[place], corpus))
    preparing = _fit_once(runner, places, missing, fitted)
    seconds: dict[Cell, float] = {}
    tried: dict[tuple[object, ...], _Trial] = {}
    disk = OTHER_FILES
    for cell in missing:
        seconds[cell] = 0.0
        labels = runner.makes[cell.inspector]().learns_from == "labels"
        for sample in places.get(cell.place, ()):  # none where no chain is left to correct
            # Another site of the task takes as long for each item.
            key = (cell.task, cell.inspector, cell.baseline, sample.bench.relation.kind, sample.bench.relation.describe)
            if key not in tried:
                tried[key] = _try(runner, cell, sample.bench, fitted.setdefault(cell.inspector, {}))
            seconds[cell] += tried[key].seconds * (sample.train_share if labels else sample.test_share)
            disk += int(tried[key].written * sample.test_share)
    relations = 1 + sum(len(runner.benches[place]) for place in places)
    tables = [one.records for one in tried.values() if one.records is not None]
    start = time.perf_counter()
    if tables:
        questions = {cell.baseline: DIAGNOSTIC for cell in missing if cell.baseline != NO_BASELINE}
        summarise(frame_of(tables), SummarySettings(questions))
    summarised = 1 + len({(task, *kind) for task, _, _, *kind in tried})
    finishing = (time.perf_counter() - start) * relations / summarised + PLOT_SECONDS
    largest = max((_residual_bytes(runner, place, missing) for place in places), default=0)
    disk += sum(_residual_bytes(runner, place, missing) for place in places)
    return Estimate(seconds, preparing, finishing, peak_memory() * 2**20 + 2 * largest, disk)


@dataclass(frozen=True)
class _Trial:
    """What a few items took.

    Attributes:
        seconds: the time.
        written: the bytes of their records and measures.
        records: their records; None where there are none.
    """

    seconds: float
    written: int
    records: pa.Table | None


def _try(runner: Runner, cell: Cell, bench: Bench, fitted: Fits) -> _Trial:
    start = time.perf_counter()
    with _failures_in_one_line(cell, bench):
        found, _ = runner.score(cell, [bench], fitted)
    took = time.perf_counter() - start
    written = sum(_parquet_bytes(table) for table in (found.records, found.measures) if table is not None)
    return _Trial(took, written, found.records)


@dataclass(frozen=True)
class _SampledBench:
    """A relation's bench with a few items, and how many times as many there are of its kind."""

    bench: Bench
    test_share: float
    train_share: float


def _sampled_benches(benches: list[Bench], corpus: Corpus) -> Iterator[_SampledBench]:
    context = replace(benches[0].context, corpus=corpus, residuals=ResidualCache(None))
    kinds: dict[tuple[str, int], list[Bench]] = {}
    for bench in benches:
        kinds.setdefault((bench.relation.kind, bench.relation.describe), []).append(bench)
    for _, group in sorted(kinds.items()):
        same = sorted(group, key=lambda b: (len(b.items), b.relation.name))
        middle = same[len(same) // 2]
        # Spread over the bench: neighbours may be about one subject.
        items = middle.items[:: max(1, len(middle.items) // TRIAL_ITEMS)][:TRIAL_ITEMS]
        yield _SampledBench(
            replace(middle, context=context, items=items),
            sum(len(bench.items) for bench in same) / len(items),
            sum(len(bench.train_items) for bench in same) / max(1, len(middle.train_items)),
        )


def _fit_once(
    runner: Runner, places: Mapping[Place, list[_SampledBench]], missing: list[Cell], fitted: dict[str, Fits]
) -> float:
    """Learn what is learned once a run, and run every method once, so that no trial pays for proofs and loading."""
    total = 0.0
    for place, samples in {place[0]: (place, samples) for place, samples in places.items()}.values():
        for sample in samples:
            start = time.perf_counter()
            runner.ask_knowledge(place, sample.bench)
            total += (time.perf_counter() - start) * sample.test_share
    start = time.perf_counter()
    for baseline in runner.baselines.values():
        if baseline.function == "random_model" and any(cell.baseline == baseline.name for cell in missing):
            with_random_weights(runner.context.model, **baseline.parameters)
    total += time.perf_counter() - start
    for cell in {cell.inspector: cell for cell in missing if cell.place in places}.values():
        trial = places[cell.place][0]
        method = CrossFit(runner.makes[cell.inspector], trial.bench, fitted.setdefault(cell.inspector, {}))
        if method.learns_labels:
            continue
        start = time.perf_counter()
        with _failures_in_one_line(cell, trial.bench):
            method.fit(None, trial.bench.context.layers)
        corpus = trial.bench.context.corpus
        assert isinstance(corpus, _TrialCorpus)
        total += time.perf_counter() - start + corpus.left_out
        corpus.left_out = 0.0
        few = replace(trial.bench, items=trial.bench.items[:WARM_ITEMS])
        own = replace(cell, baseline=NO_BASELINE)
        with _failures_in_one_line(own, few):
            runner.score(own, [few], fitted[cell.inspector])
    return total


@contextmanager
def _failures_in_one_line(cell: Cell, bench: Bench) -> Iterator[None]:
    """Say in one line what a run would note as a failed cell."""
    try:
        yield
    except Exception as error:  # whatever a method raises
        reason = str(error).partition("\n")[0]
        raise LensbenchError(
            f"{cell.inspector} ({cell.baseline}) fails on {len(bench.items)} items of {bench.relation.name}: "
            f"{type(error).__name__}: {reason}; fix it, or leave it out"
        ) from error


def _parquet_bytes(table: pa.Table) -> int:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.tell()


def _residual_bytes(runner: Runner, place: Place, missing: list[Cell]) -> int:
    """Return the bytes of a place's residuals: of the test items, and of those that labels are learned from."""
    makes = [runner.makes[cell.inspector]() for cell in missing if cell.place == place]
    learned = any(one.learns_from == "labels" and "activation" in one.reads for one in makes)
    items = sum(len(b.items) + learned * len(b.train_items) for b in runner.benches[place])
    model = runner.context.model
    context = runner.benches[place][0].context
    layers = len({*context.captured_layers, *(one for make in makes for one in layers_shown(make, context.layers))})
    return items * layers * model.d_model * model.dtype.itemsize


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        out: its folder, which is left as it is.
        cells: all of the plan.
        missing: those that are still to be made.
        estimate: what they will take, in one process on this machine.
    """

    out: Path
    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    estimate: Estimate


def dry_run(config: RunConfig) -> DryRun:
    """Plan a run, and try its cells on a few items; nothing is written but what a cache keeps of models."""
    out = folder_of_run(config)
    job = with_earlier_budget(check_job(config), out)
    # Trials share fits, which isolated cells do not: docs/trust.md says what isolation costs.
    runner = Runner(replace(job, config=job.config.model_copy(update={"isolate": False})))
    journal = Journal(out, job.config, job.baselines, runner.plan)
    missing = [cell for cell in runner.plan.cells if not journal.settled(cell)]
    return DryRun(out, runner.plan.cells, tuple(missing), estimate(runner, missing))
