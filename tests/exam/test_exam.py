"""Exams: a paper that tells nothing, a key that stays, and grades like those of an evaluation."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import OrdinalEncoder

import lensbench
from lensbench.calibration.cheats import CHEATS, OwnKnowledge, praised
from lensbench.calibration.findings import summary_if_calibrated
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation import runner as runners
from lensbench.evaluation.config import make_config
from lensbench.exam.answers import write_answers
from lensbench.exam.cheats import EXAM_CHEATS
from lensbench.exam.composing import Composer
from lensbench.exam.examiner import split
from lensbench.exam.grade import grade_exam
from lensbench.exam.key import KEY, Key, read_key
from lensbench.exam.make import ExamSettings, make_exam, size_of_exam
from lensbench.exam.paper import PAPER, ROW_SCHEMA, Paper, read_paper
from lensbench.exam.readme import SCRIPT
from lensbench.exam.sit import sit_exam
from lensbench.harness.recording import NUMBER, Recording, numbers_of, was_recorded
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.scores import Scores
from lensbench.models.language_model import LanguageModel
from tests.inspectors.test_shipped import TRAINED

FIGURES = True

ASKED: dict[str, Any] = {"tasks": "personas/city", "sites": "subject", "layers": "0,1,2"}
# All that sit an exam, but what needs an adapter, and a search: its text baselines ask every prompt of its own.
METHODS = [
    name for name, listing in find_inspectors().items()
    if set(listing.reads) <= {"activation", "question"} and name not in (*TRAINED, "patchscope_search")
]  # fmt: skip
PLACE = ["relation", "site", "baseline", "layer", "attempt", "item"]


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> LanguageModel:
    return lensbench.load_model(str(tiny_llama_folder))


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    """An exam with training sets."""
    settings = ExamSettings(make_config({"model": model, **ASKED}), training=True, seed="a seed")
    return make_exam(settings, tmp_path_factory.mktemp("exams") / "exam")


@pytest.fixture(scope="module")
def paper(exam: Path) -> Paper:
    return read_paper(exam)


@pytest.fixture(scope="module")
def key(exam: Path, paper: Paper) -> Key:
    return read_key(exam / KEY, paper.about["key_sha256"])


def constant(paper: Paper, tmp_path: Path, name: str = "constant") -> Path:
    """Answers that are the same for every row."""
    path = tmp_path / f"{name}.parquet"
    write_answers(path, ("default",), {row: np.arange(8.0)[None] for row in paper.asked.rows["row"].to_pylist()})
    return path


# --- the same as an evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["logit_lens", "patchscope", "mapped_patchscope", "tuned_lens", "probe", "mass_mean_probe"]
)
def test_an_exam_finds_what_an_evaluation_of_the_same_split_finds(
    name: str, exam: Path, paper: Paper, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = runners.Runner._prepare

    def prepare_split(runner: Any, job: Any, dropped: Any) -> Any:
        return {place: [split(bench) for bench in group] for place, group in prepare(runner, job, dropped).items()}

    sit_exam(paper, load_inspector(name), model, model, tmp_path / "answers.parquet")
    graded = grade_exam(exam, tmp_path / "answers.parquet", tmp_path / "graded")
    monkeypatch.setattr(runners.Runner, "_prepare", prepare_split)
    direct = lensbench.evaluate(model, **ASKED, inspectors=name, out=tmp_path / "direct")
    assert not direct.failed
    own, other = (run.records.set_index(PLACE).sort_index() for run in (graded, direct))
    assert own.index.equals(other.index)
    log_probs = (frame["gold_log_prob"].astype(float).to_numpy() for frame in (own, other))
    np.testing.assert_allclose(*log_probs, atol=5e-4)
    assert (own["predicted"].astype(str) == other["predicted"].astype(str)).all()
    assert (own["correct_corrected"] == other["correct_corrected"]).all()
    verdicts = [run.best.filter(like="verdict") for run in (graded, direct)]
    pd.testing.assert_frame_equal(*verdicts)
    assert graded.info["setting"]["exam"] == paper.about["exam"]


def test_answers_and_card_in_any_kind(exam: Path, paper: Paper, tmp_path: Path) -> None:
    rows = paper.asked.rows.to_pylist()
    chosen = [row["choices"][i % len(row["choices"])] for i, row in enumerate(rows)]
    both = list(zip(chosen, rows, strict=True))
    says = {
        "answer": chosen,
        "text": [f"I would say {one}, not {row['choices'][0]}." for one, row in both],
        "log_scores": [[float(one == answer) for answer in row["answers"]] for one, row in both],
    }
    found = {}
    for kind, column in says.items():
        path = tmp_path / f"{kind}.parquet"
        pq.write_table(pa.table({"row": [row["row"] for row in rows], kind: column}), path)
        run = grade_exam(exam, path, tmp_path / f"run-{kind}")
        found[kind] = run.records.query("baseline == 'none'").sort_values(PLACE)["predicted"].astype(str).tolist()
    assert found["answer"] == found["text"] == found["log_scores"]
    assert set(found["answer"]) == {*rows[0]["answers"]}


# --- what the paper tells --------------------------------------------------------------------------------------------


def test_the_paper_holds_nothing_of_the_key(exam: Path, paper: Paper, key: Key) -> None:
    secret = [key.seed]
    for asked in key.asked.values():
        secret += [item.subject for item in asked.items.values()] + [item.source for item in asked.items.values()]
    everything = b"".join(path.read_bytes() for path in sorted((exam / PAPER).rglob("*")) if path.is_file())
    rows = json.dumps(paper.asked.rows.to_pylist() + (paper.training.rows.to_pylist() if paper.training else []))
    for text in secret:
        assert text.encode() not in everything
        assert text not in rows
    assert paper.asked.rows.column_names == [*ROW_SCHEMA.names, "training"]
    metadata = pq.read_metadata(exam / PAPER / "rows.parquet").metadata or {}
    assert set(metadata) <= {b"ARROW:schema"}
    times = {path.stat().st_mtime for path in (exam / PAPER).rglob("*")}
    assert len(times) == 1
    assert times.pop() % 86400 == 43200


def test_no_tested_subject_is_taught(paper: Paper, key: Key, exam: Path) -> None:
    assert paper.training is not None
    tested = {item.subject for asked in key.asked.values() for item in asked.items.values()}
    everybody = {fact.subject for fact in lensbench.load_task("personas/city").facts}
    for _, taught in paper.training.rows.to_pandas().groupby("training"):
        assert len(tested) + taught["group"].nunique() == len(everybody)


def test_all_but_the_activations_tells_decoys_from_real_rows_at_chance(paper: Paper, key: Key, exam: Path) -> None:
    places = pq.read_table(exam / KEY / "rows.parquet").to_pandas()
    real = set(places.loc[places["baseline"] == "none", "row"])
    rows = paper.asked.rows.to_pandas()
    # A training set is the target's or another's: that is one choice a layer, which no paper can hide from its maker.
    targets = set(rows.loc[rows["row"].isin(real), "training"])
    rows = rows[rows["training"].isin(targets)].reset_index()
    features = pd.DataFrame({"place": rows["index"], "name": [int(name, 16) for name in rows["row"]]})
    for column in ("layer", "site", "question", "training"):
        features[column] = OrdinalEncoder().fit_transform(rows[[column]])
    for column in ("forms", "answers", "choices"):
        features[column] = OrdinalEncoder().fit_transform(rows[[column]].map(lambda value: "|".join(value)))
    scores = cross_val_score(
        RandomForestClassifier(200, random_state=0, min_samples_leaf=5), features, rows["row"].isin(real),
        cv=10, scoring="roc_auc",
    )  # fmt: skip
    assert abs(scores.mean() - 0.5) < 3 * max(scores.std() / len(scores) ** 0.5, 0.01)


def test_everywhere_there_are_as_many_decoys_for_each_real_row(paper: Paper, exam: Path) -> None:
    places = pq.read_table(exam / KEY / "rows.parquet").to_pandas()
    rows = paper.asked.rows.to_pandas().assign(
        real=lambda frame: frame["row"].isin(places.query("baseline == 'none'")["row"])
    )
    sizes = rows.groupby(["layer", "training"]).size()
    assert sizes.groupby("layer").apply(lambda one: one.max() - one.min()).max() <= 0.05 * sizes.max()
    shares = rows.groupby(["layer", "training"])["real"].mean()
    shares = shares[shares > 0]
    assert len(shares) == 3
    assert shares.max() - shares.min() < 0.02


def test_no_row_is_alone_with_its_length(paper: Paper) -> None:
    """Noise is as long as what it stands beside: a row whose length is its own would be no such thing."""
    rows = paper.asked.rows.to_pandas()
    lengths = np.linalg.norm(paper.asked.activations.astype(np.float64), axis=1)
    for _, group in rows.groupby(["layer", "training"]):
        own = np.sort(np.unique(lengths[group.index]))
        counts = np.array([np.isclose(lengths[group.index], one, rtol=1e-5).sum() for one in own])
        assert counts.min() >= 2


def test_what_stands_under_several_questions_may_be_a_decoy(model: LanguageModel, tmp_path: Path) -> None:
    asked = {"tasks": "personas/city,personas/animal", "sites": "subject", "layers": "0,2", "limit": 200}
    exam = make_exam(ExamSettings(make_config({"model": model, **asked}), seed="two"), tmp_path / "exam")
    paper = read_paper(exam)
    rows = paper.asked.rows.to_pandas()
    rows["vector"] = [values.tobytes() for values in paper.asked.activations]
    several = rows.groupby("vector")["question"].nunique() > 1
    rows["several"] = rows["vector"].map(several)
    places = pq.read_table(exam / KEY / "rows.parquet").to_pandas()
    real = rows["row"].isin(places.loc[places["baseline"] == "none", "row"])
    shares = rows.groupby(real)["several"].mean()
    assert shares[True] > 0.2
    assert 0.5 < shares[False] / shares[True] < 2


def test_two_exams_of_one_evaluation_have_nothing_in_common_but_what_is_asked(
    model: LanguageModel, tmp_path: Path
) -> None:
    settings = ExamSettings(make_config({"model": model, **ASKED, "limit": 10, "baselines": "shuffled,mean"}))
    first, second = (read_paper(make_exam(settings, tmp_path / name)) for name in "ab")
    assert first.about["exam"] != second.about["exam"]
    assert not set(first.asked.rows["row"].to_pylist()) & set(second.asked.rows["row"].to_pylist())
    assert sorted(map(bytes, first.asked.activations[:, :4])) != list(map(bytes, first.asked.activations[:, :4]))
    again = [make_exam(replace(settings, seed="same"), tmp_path / name) for name in "cd"]
    papers = [(one / PAPER / "rows.parquet").read_bytes() for one in again]
    assert papers[0] == papers[1]


# --- who sits it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Runs a script where there is nothing but numpy and pyarrow."""
    site = tmp_path_factory.mktemp("bare")
    for package in (np, pa):
        own = Path(package.__file__).parent
        for found in own.parent.glob(f"{own.name}*"):
            if found.name in (own.name, f"{own.name}.libs"):
                (site / found.name).symlink_to(found)

    def run(script: str, folder: Path) -> None:
        whole = f"import sys\nsys.path.insert(0, {str(site)!r})\n{script}"
        (folder / "script.py").write_text(whole)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [sys.executable, "-I", "-S", "script.py"], cwd=folder, capture_output=True, text=True, env=environment,
            check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        (folder / "script.py").unlink()

    run("import importlib.util\nassert not any(map(importlib.util.find_spec, ('torch', 'lensbench', 'pandas')))", site)
    return run


NEAREST_MEAN = textwrap.dedent(
    """
    taught, vectors = read("training")
    means = {}
    for name in {row["training"] for row in taught}:
        own = [i for i, row in enumerate(taught) if row["training"] == name]
        labels = [taught[i]["label"] for i in own]
        means[name] = {one: vectors[[i for i, l in zip(own, labels) if l == one]].mean(0) for one in set(labels)}

    def answer(row, activation):
        known = means[row["training"]]
        far = {one: -float(((activation - mean) ** 2).sum()) for one, mean in known.items()}
        return [far.get(one, -float("inf")) for one in row["answers"]]
    """
)


def test_numpy_and_pyarrow_are_enough(
    exam: Path, paper: Paper, tmp_path: Path, bare_python: Callable[[str, Path], None]
) -> None:
    before, call = SCRIPT.split("rows, activations = read")
    for name, learn in (("constant", ""), ("nearest_mean", NEAREST_MEAN)):
        bare_python(f"{before}{learn}\nrows, activations = read{call}", exam / PAPER)
        (exam / PAPER / "answers.parquet").rename(tmp_path / f"{name}.parquet")
    constant = grade_exam(exam, tmp_path / "constant.parquet", tmp_path / "run-constant")
    assert set(constant.records.query("baseline == 'none'")["correct"]) == {0.125}
    assert set(constant.best["uses_activation_verdict"]) == {"within .10 of choices_only"}
    card = tmp_path / "nearest_mean.card.toml"
    card.write_text('name = "nearest_mean"\nreads = ["activation"]\nlearns_from = "labels"\n')
    learned = grade_exam(exam, tmp_path / "nearest_mean.parquet", tmp_path / "run-learned")
    own = learned.records.query("baseline == 'none'")
    reference = nearest_mean_by_hand(exam, paper)
    assert own.set_index(["layer", "item"])["predicted"].astype(str).to_dict() == reference
    assert "privileged" not in set(learned.best["target_specific_verdict"].astype(str))


def nearest_mean_by_hand(exam: Path, paper: Paper) -> dict[tuple[int, str], str]:
    """The answers of the nearest mean to the real rows, found without lensbench's reading of answers."""
    assert paper.training is not None
    places = pq.read_table(exam / KEY / "rows.parquet").to_pandas()
    places = places[(places["baseline"] == "none") & places["cell"].str.contains("exam_labels")]
    rows = {
        row["row"]: (row, values)
        for row, values in zip(paper.asked.rows.to_pylist(), paper.asked.activations, strict=True)
    }
    taught = paper.training.rows.to_pandas()
    found = {}
    for place in places.itertuples():
        row, values = rows[place.row]
        own = taught[taught["training"] == row["training"]]
        means = own.groupby("label").apply(lambda one: paper.training.activations[one.index].mean(0))  # type: ignore[union-attr]
        found[row["layer"], place.item] = min(means.index, key=lambda label: ((values - means[label]) ** 2).sum())
    return found


@pytest.mark.parametrize("name", EXAM_CHEATS)
def test_cheats_made_for_exams_earn_nothing(name: str, exam: Path, paper: Paper, tmp_path: Path) -> None:
    write_answers(tmp_path / f"{name}.parquet", ("default",), EXAM_CHEATS[name].answer(paper))
    run = grade_exam(exam, tmp_path / f"{name}.parquet", tmp_path / "run")
    assert praised(summary_if_calibrated(run), name) == {}


@pytest.mark.parametrize("kind", ["same neighbours", "other neighbours"])
def test_a_method_that_answers_one_row_in_two_ways_gets_no_verdict(
    kind: str, exam: Path, paper: Paper, key: Key, tmp_path: Path
) -> None:
    scores = {row: np.zeros((1, 8)) for row in paper.asked.rows["row"].to_pylist()}
    copied = {row for *pair, found in key.repeats for row in pair if found == "same neighbours"}
    alone = kind == "other neighbours"
    changed = next(b for _, b, found in key.repeats if found == kind and not (alone and b in copied))
    scores[changed][0, 3] = 1.0
    write_answers(tmp_path / "moody.parquet", ("default",), scores)
    run = grade_exam(exam, tmp_path / "moody.parquet", tmp_path / "run")
    assert run.checks["moody"].first == "check_repeats"
    assert kind in run.checks["moody"].failed[0]
    assert {"invalid"} == {verdict.split()[0] for verdict in run.best["uses_activation_verdict"].astype(str)} or all(
        "check_repeats" in verdict for verdict in run.best["uses_activation_verdict"].astype(str)
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def at(place: int, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.at[place, "log_scores"] = value

    return change


DAMAGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame | None]] = {
    "missing": lambda frame: frame.iloc[3:],
    "double": lambda frame: pd.concat([frame, frame.iloc[:2]]),
    "unknown": lambda frame: frame.assign(row=["0123456789", *frame["row"][1:]]),
    "nan": at(5, np.full(8, np.nan)),
    "short": at(6, np.zeros(7)),
    "null": at(7, None),
    "attempt": lambda frame: frame.assign(attempt="another"),
    "numbers": lambda frame: frame.assign(attempt=1),
    "column": lambda frame: frame.rename(columns={"log_scores": "scores"}),
    "text": lambda frame: frame.assign(log_scores="high"),
}


def damaged(table: pa.Table, how: str) -> pa.Table:
    frame = table.to_pandas()
    changed = DAMAGES[how](frame)
    return pa.Table.from_pandas(frame if changed is None else changed, preserve_index=False)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"3 rows are missing, the first: \w{10}"),
        ("double", r"2 rows stand there twice, the first: \w{10}"),
        ("unknown", "1 rows are not in the paper, the first: 0123456789"),
        ("nan", r"1 rows are wrong, the first: \w{10} has a log-score that is no number"),
        ("short", r"1 rows are wrong, the first: \w{10} has 7 log-scores; it has 8 answers"),
        ("attempt", "the attempt 'another' is there, and the card does not declare it"),
        ("column", "has the columns row, attempt, scores; expected row, one of"),
        ("text", "log_scores is (large_)?string; expected lists of numbers"),
        ("numbers", "attempt is int64; expected texts, and none missing"),
        ("null", r"1 rows are wrong, the first: \w{10} has a log-score that is no number"),
    ],
)
def test_answers_that_cannot_be_graded_are_refused_whole(
    how: str, said: str, exam: Path, paper: Paper, tmp_path: Path
) -> None:
    path = constant(paper, tmp_path)
    pq.write_table(damaged(pq.read_table(path), how), path)
    with pytest.raises(UsageError, match=said) as caught:
        grade_exam(exam, path, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ('name = "a/b"', "name"),
        ('name = "none"', "stands for no method"),
        ('name = "a"\nreads = ["question"]', "lacks activation"),
        ('name = "a"\nattempts = ["one", "one"]', "holds a name twice"),
        ('name = "a"\nkind = "x"', "kind"),
        ('name = "a"\nreads = ["activation", "text"]', "reads text, which this exam does not have"),
        ('name = "a"\nattempts = ["one", "two"]', "the attempt"),
        ("name = ", "cannot be read"),
    ],
)
def test_a_wrong_card_is_refused(card: str, said: str, exam: Path, paper: Paper, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(card)
    with pytest.raises(UsageError, match=said):
        grade_exam(exam, constant(paper, tmp_path), tmp_path / "run", tmp_path / "card.toml")


def test_a_folder_of_another_exam_is_refused(exam: Path, paper: Paper, model: LanguageModel, tmp_path: Path) -> None:
    settings = ExamSettings(make_config({"model": model, **ASKED}), training=True)
    other = make_exam(settings, tmp_path / "other")
    grade_exam(exam, constant(paper, tmp_path), tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run with exam \w{8}, now \w{8}; choose another folder"):
        grade_exam(other, constant(read_paper(other), tmp_path), tmp_path / "run")


def test_texts_are_read_where_the_exam_allows_it(model: LanguageModel, tmp_path: Path) -> None:
    settings = ExamSettings(make_config({"model": model, **ASKED, "limit": 20}), text=True)
    exam = make_exam(settings, tmp_path / "exam")
    paper = read_paper(exam)
    assert paper.about["reads"] == ["activation", "question", "text"]
    rows = paper.asked.rows.to_pandas()
    assert (rows["source"].str.contains("|".join(rows["subject"].unique()))).all()
    sit_exam(paper, OwnKnowledge, model, model, tmp_path / "knows.parquet")
    run = grade_exam(exam, tmp_path / "knows.parquet", tmp_path / "run")
    direct = lensbench.evaluate(model, **{**ASKED, "limit": 20}, inspectors=[OwnKnowledge], out=tmp_path / "direct")
    shown = ["none", "mean", "gaussian", "shuffled"]
    frames = [one.records[one.records["baseline"].isin(shown)].sort_values(PLACE) for one in (run, direct)]
    assert set(frames[0]["baseline"]) == set(shown)
    assert frames[0]["predicted"].astype(str).tolist() == frames[1]["predicted"].astype(str).tolist()
    assert run.crossed.empty, "what reads the text has no activation that could be another's"


def test_a_changed_key_is_refused(exam: Path, paper: Paper, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(exam, copy)
    for name in ("key.json", "rows.parquet"):
        path = copy / KEY / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b" ")
        with pytest.raises(LensbenchError, match="is not the"):
            grade_exam(copy, constant(paper, tmp_path), tmp_path / "run")
        path.write_bytes(kept)
    shutil.rmtree(copy / KEY)
    with pytest.raises(LensbenchError, match="only whoever made an exam can grade it"):
        grade_exam(copy, constant(paper, tmp_path), tmp_path / "run")


def test_prose_and_folders_that_are_there_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    prose = make_config({"model": model, "tasks": "next_token", "layers": "0,1", "limit": 10})
    with pytest.raises(UsageError, match="no question for an exam"):
        make_exam(ExamSettings(prose), tmp_path / "prose")
    assert not (tmp_path / "prose").exists()
    with pytest.raises(UsageError, match="is there already"):
        make_exam(ExamSettings(prose), tmp_path)


def test_a_baseline_that_computes_with_scores_is_refused() -> None:
    import torch

    mixed = Scores((NUMBER,), torch.tensor([[[[1.0, 1.5]]]]))
    with pytest.raises(LensbenchError, match="computes with a method's scores"):
        numbers_of(mixed, "the baseline mine")
    assert not was_recorded(Scores(("default",), torch.zeros(1, 1, 1, 2)))


def test_the_size_is_said_beforehand(exam: Path, paper: Paper, model: LanguageModel) -> None:
    size = size_of_exam(ExamSettings(make_config({"model": model, **ASKED}), training=True))
    assert size.rows == pytest.approx(len(paper.asked.rows), rel=0.5)
    written = sum(path.stat().st_size for path in (exam / PAPER).rglob("*.safetensors"))
    assert size.bytes == pytest.approx(written, rel=0.6)


def test_an_empty_composer_has_no_rows() -> None:
    assert Composer(Recording(), "s").rows == []
    assert len(CHEATS) >= 20
