"""Exams on facts that are planted in the real SmolLM2: who can read them, and who only pretends."""

from pathlib import Path

import pytest

from lensbench.calibration.cheats import CHEATS, praised
from lensbench.calibration.findings import summary_if_calibrated
from lensbench.evaluation.config import make_config
from lensbench.exam.answers import write_answers
from lensbench.exam.cheats import EXAM_CHEATS
from lensbench.exam.grade import grade_exam
from lensbench.exam.make import ExamSettings, make_exam
from lensbench.exam.paper import read_paper
from lensbench.exam.sit import sit_exam
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model

pytestmark = pytest.mark.model

# They cheat with layers that a row does not have: of them, an exam leaves a logit lens that is what it says.
HONEST_HERE = ("cheat_later_layer", "cheat_next_layer", "cheat_same_at_every_layer")
LEARNERS = ("cheat_best_constant", "cheat_norm", "cheat_memorises_subjects")
# What needs a text that it does not declare finds none in the paper, and cannot sit.
SITTING = [
    cheat for cheat in CHEATS
    if cheat.make.learns_from == "nothing" and cheat.make().reads <= {"activation", "question", "choices"}
    and cheat.name != "cheat_undeclared_text"
]  # fmt: skip


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> LanguageModel:
    return load_model("smollm2-135m")


@pytest.fixture(scope="module", params=["plain-08", "sham-08-same"])
def exam(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    given = {
        "model": f"smollm2-135m+{request.param}", "verbalizer": "smollm2-135m", "tasks": "personas/city",
        "subjects": "planted", "sites": "subject", "limit": 64, "layers": "0,10,30", "dtype": "float32",
        "baselines": "mean,gaussian,embedding,choices_only,question_only,input_only,unplanted,reference_reader",
    }  # fmt: skip
    return make_exam(ExamSettings(make_config(given), training=True), tmp_path_factory.mktemp("exams") / request.param)


def verdicts(exam: Path, name: str, tmp_path: Path) -> dict[str, str]:
    run = grade_exam(exam, tmp_path / f"{name}.parquet", tmp_path / f"run-{name}")
    return praised(summary_if_calibrated(run), name)


def test_a_reader_finds_what_is_planted_and_nothing_in_a_sham(exam: Path, model: LanguageModel, tmp_path: Path) -> None:
    sit_exam(read_paper(exam), LogitLens, model, model, tmp_path / "logit_lens.parquet")
    found = verdicts(exam, "logit_lens", tmp_path)
    assert found.get("target_specific") == ("privileged" if exam.name == "plain-08" else None)


def test_cheats_get_no_good_verdict(exam: Path, model: LanguageModel, tmp_path: Path) -> None:
    paper = read_paper(exam)
    for cheat in SITTING:
        sit_exam(paper, cheat.make, model, model, tmp_path / f"{cheat.name}.parquet")
        found = verdicts(exam, cheat.name, tmp_path)
        honest = cheat.name in HONEST_HERE and exam.name == "plain-08"
        assert ("target_specific" in found) == honest, (cheat.name, found)
    for name, made in EXAM_CHEATS.items():
        write_answers(tmp_path / f"{name}.parquet", ("default",), made.answer(paper))
        assert verdicts(exam, name, tmp_path) == {}, name


@pytest.mark.parametrize("name", LEARNERS)
def test_cheats_that_learn_get_no_good_verdict(name: str, exam: Path, model: LanguageModel, tmp_path: Path) -> None:
    cheat = next(cheat for cheat in CHEATS if cheat.name == name)
    sit_exam(read_paper(exam), cheat.make, model, model, tmp_path / f"{name}.parquet")
    assert "target_specific" not in verdicts(exam, name, tmp_path)
