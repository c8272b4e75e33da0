"""Facts that are made for one exam, series of exams, and the commands."""

import json
from pathlib import Path

import pytest

from lensbench.errors import UsageError
from lensbench.evaluation.config import make_config
from lensbench.exam.fresh import ASKED, IMPLANT, Fresh, fresh_task, make_fresh_exam, make_series, series
from lensbench.exam.grade import grade_exam
from lensbench.exam.key import KEY, read_key
from lensbench.exam.make import ExamSettings, make_exam
from lensbench.exam.paper import PAPER, read_paper
from lensbench.exam.series import grade_series
from lensbench.exam.sit import sit_exam
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.models.loading import load_model
from lensbench.runs.pages import read_board
from lensbench.tasks import fold_of, load_task
from tests.command import lensbench, refused

FRESH = Fresh(layer=1, names=10, steps=2)


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path) -> ExamSettings:
    return ExamSettings(make_config({"model": str(tiny_llama_folder), "layers": "0,1,2"}), seed="fresh")


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory, settings: ExamSettings) -> Path:
    return make_fresh_exam(settings, FRESH, tmp_path_factory.mktemp("exams") / "exam")


def test_names_are_new_and_even(settings: ExamSettings) -> None:
    task, other = fresh_task(64, "one"), fresh_task(64, "two")
    names = {fact.subject for fact in task.facts}
    shipped = {fact.subject for fact in load_task("personas").every.facts}
    assert len(names) == 2 * 65
    assert not names & shipped
    assert not names & {fact.subject for fact in other.facts}
    own = [fact for fact in task.facts if fact.relation == ASKED]
    assert {fold_of(fact.subject) for fact in own} == set(range(5))
    counts = [sum(fact.answer == answer for fact in own) for answer in task.relations[ASKED].answers]
    assert max(counts) - min(counts) <= 5
    assert fresh_task(64, "one").facts == task.facts
    assert other.version != task.version


def test_the_implant_stays_in_the_key(exam: Path, tiny_llama_folder: Path) -> None:
    paper = read_paper(exam)
    facts = json.loads((exam / KEY / IMPLANT / "facts.json").read_text())[ASKED]
    everything = b"".join(path.read_bytes() for path in (exam / PAPER).rglob("*") if path.is_file())
    assert len(facts) == 10
    assert not any(name.encode() in everything for name in facts)
    assert b"implant" not in everything
    assert paper.about["model"] == str(tiny_llama_folder)
    assert paper.about["edited"]
    assert "fingerprint" not in paper.about, "it would tell which edit"
    key = read_key(exam / KEY, paper.about["key_sha256"])
    (asked,) = key.asked.values()
    assert {item.subject: item.answer for item in asked.items.values() if item.subject in facts} == facts
    assert {"unplanted", "reference_reader"} <= {cell.baseline for cell in key.plan.cells}


def test_an_edited_verbalizer_is_not_named(exam: Path, tiny_llama_folder: Path, tmp_path: Path) -> None:
    edited = f"{tiny_llama_folder}+{exam / KEY / IMPLANT}"
    config = make_config({"model": edited, "tasks": "personas/city", "sites": "subject", "layers": "0,1", "limit": 10})
    about = read_paper(make_exam(ExamSettings(config), tmp_path / "exam")).about
    assert about["verbalizer"] == about["model"] == str(tiny_llama_folder)
    assert not {"fingerprint", "verbalizer_fingerprint"} & set(about)


def test_a_series_is_a_calibration_by_mail(settings: ExamSettings, tiny_llama_folder: Path, tmp_path: Path) -> None:
    made = make_series(settings, FRESH, tmp_path / "series")
    assert [one.name for one in made] == ["1", "2", "3", "4"]
    designs = sorted(json.loads((one / KEY / IMPLANT / "implant.json").read_text())["design"] for one in made)
    assert designs == ["plain", "plain", "plain", "sham"]
    model = load_model(str(tiny_llama_folder))
    abouts = [dict(read_paper(one).about) for one in made]
    # Nothing but names, digests and counts differs between the papers.
    same = [{k: v for k, v in one.items() if k not in ("exam", "key_sha256", "rows")} for one in abouts]
    assert all(one == same[0] for one in same)
    for one in made:
        sit_exam(read_paper(one), LogitLens, model, model, tmp_path / "answers" / f"{one.name}.parquet")
    problems = grade_series(tmp_path / "series", tmp_path / "answers", tmp_path / "graded")
    found = json.loads((tmp_path / "graded" / "calibration.json").read_text())
    assert found["problems"] == problems == []
    assert {one["kind"] for one in found["findings"]} >= {"plain", "sham"}
    board = read_board(tmp_path / "graded")
    assert {entry.exam for entry in board.entries} == {one["exam"] for one in abouts}
    (tmp_path / "answers" / "3.parquet").unlink()
    with pytest.raises(UsageError, match=r"has no 3\.parquet"):
        grade_series(tmp_path / "series", tmp_path / "answers", tmp_path / "again")


def test_what_cannot_be_planted_is_refused(settings: ExamSettings, tmp_path: Path) -> None:
    for fresh, said in (
        (Fresh("rotated", 1), "expected plain, relay, gated, sham"),
        (Fresh("plain", 9), "has 2 layers"),
        (Fresh("plain", 1, dose=2.0), "dose"),
    ):
        with pytest.raises(UsageError, match=said):
            make_fresh_exam(settings, fresh, tmp_path / "exam")
        assert not (tmp_path / "exam").exists()
    assert len({(one.design, one.layer, one.dose) for one in series(Fresh(), 30)}) == 4


def test_the_commands(exam: Path, tiny_llama_folder: Path, tmp_path: Path) -> None:
    said = lensbench(
        "exam", "sit", exam / PAPER, "--methods", "logit_lens", "--out", tmp_path / "answers", cwd=tmp_path
    ).stdout
    answers = tmp_path / "answers" / "logit_lens.parquet"
    assert str(answers) in said
    result = lensbench("exam", "grade", exam, answers, "--out", tmp_path / "run", "--json", cwd=tmp_path).stdout
    assert json.loads(result)
    run = grade_exam(exam, answers, tmp_path / "again")
    assert run.info["methods"]["logit_lens"]["card"]["name"] == "logit_lens"
    asked = ("--model", tiny_llama_folder, "--tasks", "personas/city", "--sites", "subject", "--layers", "0,1")
    size = lensbench(
        "exam", "make", *asked, "--limit", "10", "--dry-run", "--out", tmp_path / "new", "--json", cwd=tmp_path
    ).stdout
    assert json.loads(size)["rows"] > 20
    assert not (tmp_path / "new").exists()
    assert "texts" in lensbench("exam", "plan", *asked[2:6], "--out", tmp_path / "plan.parquet", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make", "--out", "EXAM"), "is there already"),
        (("make", "--out", "NEW", "--series", "--fresh-implant", "gated"), "--series plants facts of its own choice"),
        (("make", "--out", "NEW", "--fresh-implant", "plain", "--captured", "EXAM"), "nothing can be planted"),
        (("sit", "nowhere", "--inspectors", "logit_lens", "--out", "NEW"), "is no exam paper"),
        (("sit", "EXAM", "--inspectors", "probe", "--out", "NEW"), "the paper has none"),
        (("sit", "EXAM", "--inspectors", "superscopes", "--out", "NEW"), "reads components"),
        (("grade", "EXAM", "nowhere.parquet", "--out", "NEW"), "cannot be read"),
    ],
)
def test_wrong_calls_are_one_line(arguments: tuple[str, ...], said: str, exam: Path, tmp_path: Path) -> None:
    places = {"EXAM": str(exam), "NEW": str(tmp_path / "new")}
    assert said in refused(lensbench("exam", *(places.get(one, one) for one in arguments), cwd=tmp_path), 2)
    assert not (tmp_path / "new").exists()
