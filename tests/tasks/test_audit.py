"""Every check finds what was planted for it, and nothing in a clean task; shipped tasks are as their READMEs say."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError
from lensbench.tasks import Fact, Task, TaskError, find_tasks, fold_of, load_task
from lensbench.tasks.audit import (
    ALL,
    DEFAULT_THRESHOLDS,
    MODEL_CHECKS,
    AuditFinding,
    audit_task,
    character_accuracy,
    guess_from_characters,
    markdown,
    proposed,
    read_table,
    table_rows,
    with_thresholds,
)
from lensbench.tasks.audit.answers import near_duplicates
from tests.audit_tasks import PLANTS, bad_task, clean_task, make_facts, make_relation, planted, write


def test_shipped_tasks_are_there():
    assert "attribute_extraction" in find_tasks()


@pytest.mark.parametrize("name", find_tasks())
def test_shipped_task_is_as_its_readme_says(name: str):
    task = load_task(name)
    stated = read_table(task)
    do = f"write what `lensbench audit {name} --markdown --propose` prints under '## Leak audit' in its README.md"
    assert stated, f"task {name} has no leak table: {do}"
    thresholds = {key: row.threshold for key, row in stated.items()}
    findings = audit_task(task, thresholds=thresholds)
    assert [finding for finding in findings if not finding.ok] == []
    rows = {(row.relation, row.check): row for row in table_rows(findings, thresholds)}
    made = {key for key in stated if key[1] not in MODEL_CHECKS}
    assert made == set(rows), f"the leak table of {name} has other rows than the audit: {do}"
    for key in made:
        # The figure itself, so that the table cannot drift; other versions of scikit-learn may round otherwise.
        assert rows[key].value == pytest.approx(stated[key].value, abs=0.02), (key, do)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(str(clean_task(tmp_path_factory.mktemp("clean") / "clean")))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(str(bad_task(tmp_path_factory.mktemp("bad") / "bad")))


# A relation with a single answer has that answer for its best constant, wherever it stands in its set.
TOGETHER = {"too few classes": {"best constant", "gold is in the middle"}}


def failed(findings: list[AuditFinding]) -> set[tuple[str, str]]:
    return {(found.relation, found.check) for found in findings if not found.ok}


def test_each_check_finds_its_leak_and_no_other(bad: Task):
    found = failed(audit_task(bad))
    for check in PLANTS:
        own = {name for relation, name in found if relation == check.replace(" ", "_")}
        assert own == {check} | TOGETHER.get(check, set()), check


def test_a_clean_task_passes_every_check(clean: Task):
    findings = audit_task(clean)
    assert failed(findings) == set()
    # All checks were made, so that none passes by never being asked.
    assert {found.check for found in findings} == set(DEFAULT_THRESHOLDS) - MODEL_CHECKS
    assert audit_task(clean) == findings
    assert set(PLANTS) | {"answer given", "read at token 0"} == set(DEFAULT_THRESHOLDS) - MODEL_CHECKS


def finding(task: Task, check: str, **given) -> AuditFinding:
    return next(found for found in audit_task(task, **given) if found.check == check)


def test_an_answer_that_is_given_has_a_threshold_of_its_own(clean: Task):
    given = finding(clean, "answer given", thresholds={("told", "answer given"): 0.5})
    assert (given.relation, given.value, given.ok) == ("told", 1, False)
    assert finding(clean, "answer given").ok
    found = {found.check for found in audit_task(clean) if found.relation == "told"}
    assert "relation words" not in found
    assert "answer in text" in found  # prompts and questions may still not say it


def own_texts(task: Task, text: str, site: str = "answer") -> Task:
    """The same task, where facts bring their own texts; {answer} and {subject} are filled in."""
    relation = replace(task.relations["likes"], sources={site: {"own": "{source}"}})
    facts = tuple(
        replace(fact, texts={site: text.replace("{answer}", fact.answer).replace("{SUBJECT}", fact.subject)})
        for fact in task.facts
        if fact.relation == "likes"
    )
    return replace(task, relations={"likes": relation}, facts=facts, sites=(site,))


def test_facts_with_texts_of_their_own(clean: Task):
    assert failed(audit_task(own_texts(clean, "He met {SUBJECT}, and wore"))) == set()
    assert finding(own_texts(clean, "In {answer} coats, {subject} wore"), "answer in text").value == 1
    # The name itself is no text: whether it holds the answer is another check.
    named = own_texts(clean, "He met {SUBJECT}, and wore")
    named = replace(named, facts=tuple(replace(f, subject=f.answer, texts={"answer": f.answer}) for f in named.facts))
    assert finding(named, "answer in text").value == 0
    assert finding(named, "answer in subject").value == 1
    words = own_texts(clean, "Which colour? See {subject}", "subject")
    assert finding(words, "relation words").value == 1
    assert finding(own_texts(clean, "{subject} came", "subject"), "read at token 0").value > 0.9
    assert finding(own_texts(clean, "{subject} came with {subject}", "subject"), "read at token 0").value == 0
    stated = own_texts(clean, "It is {answer}. See {subject}", "subject")
    stated = replace(stated, relations={"likes": replace(stated.relations["likes"], given=True)})
    assert finding(stated, "answer given").value == 1
    assert finding(stated, "answer in text").value == 0


def test_an_inspection_prompt_that_begins_with_its_slot(clean: Task):
    likes = replace(clean.relations["likes"], inspection=("{subject} likes",))
    found = finding(replace(clean, relations={"likes": likes}), "read at token 0")
    assert (found.ok, found.detail) == (False, "{subject} likes")


def test_open_relations_have_a_best_constant_in_each_set(clean: Task):
    """Answers of several facts are learned from other folds; answers of a single fact cannot be."""
    one = {fact.line: fact for fact in clean.facts if fact.relation == "one"}
    single = replace(clean, relations={"one": clean.relations["one"]}, facts=tuple(one.values()))
    assert finding(single, "best constant").value < 0
    sets = clean.relations["one"].choice_sets
    often = tuple(
        replace(fact, answer=next(choices[5] for choices in sets if fact.answer in choices), aliases=())
        for fact in one.values()
    )
    assert finding(replace(single, facts=often), "best constant").value == pytest.approx(1 - 1 / 8)


@settings(max_examples=50, deadline=None)
@given(popularity=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=8, max_size=8))
def test_ranks_of_popularity_share_their_ties(clean: Task, popularity: list[float]):
    """Each choice is gold once: whatever its popularity, no rank is right more often than chance."""
    choices = clean.relations["one"].choice_sets[0]
    known = enumerate(zip(choices, popularity, strict=True))
    facts = tuple(Fact("one", f"x{i}", choice, (), 0, i, value) for i, (choice, value) in known)
    task = replace(clean, relations={"one": clean.relations["one"]}, facts=facts)
    for check in ("median popularity", "most popular"):
        assert finding(task, check).value == pytest.approx(0)


def test_without_popularity_nothing_is_said_of_it(clean: Task):
    unknown = tuple(replace(fact, popularity=None) for fact in clean.facts)
    checks = {found.check for found in audit_task(replace(clean, facts=unknown))}
    assert not checks & {"median popularity", "most popular"}


@pytest.mark.parametrize(("folds", "share"), [((0, 1, 0, 1), 1 / 4), ((0, 0, 0, 0), 0)])
def test_the_same_words_are_a_near_duplicate_in_another_fold_only(folds: tuple[int, ...], share: float):
    names = ["Ana Bo", "the Bo Ana", "Passage 1 of 1", "Passage of 1 33"]
    known = enumerate(zip(names, folds, strict=True))
    assert near_duplicates([Fact("likes", name, "olive", (), fold, i) for i, (name, fold) in known])[0] == share


def test_the_same_text_is_a_near_duplicate(clean: Task):
    task = own_texts(clean, "In the rain they wore")
    assert finding(task, "near duplicates").value > 0.9


def test_characters_betray_what_is_written_in_them():
    names = [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{i}" for i in range(150)]
    folds = [fold_of(name) for name in names]
    told = guess_from_characters(names, ["ab"[name[0] < "m"] for name in names], folds)
    assert told.accuracy > 0.9 > told.high > 0.5 > told.low
    accuracy, high = character_accuracy(names, ["ab"[int(name[2:]) * 7919 % 101 < 50] for name in names], folds)
    assert accuracy <= high + 0.05


# The table


def as_readme(table: str) -> str:
    return f"# A task\n\n## Leak audit\n\nIn words.\n\n{table}\n\n## More\n\n| a |\n"


def test_what_is_proposed_passes_and_can_be_read_again(bad: Task, tmp_path: Path):
    findings = audit_task(bad)
    thresholds = proposed(findings)
    assert set(thresholds) == failed(findings)
    judged = with_thresholds(findings, thresholds)
    assert failed(judged) == set()
    rows = table_rows(judged, thresholds)
    (tmp_path / "README.md").write_text(as_readme(markdown(rows)), encoding="utf-8")
    stated = read_table(replace(bad, folder=tmp_path))
    assert {key: row.threshold for key, row in stated.items() if key[0] != ALL and key in thresholds} == thresholds
    again = audit_task(bad, thresholds={key: row.threshold for key, row in stated.items()})
    assert failed(again) == set()
    assert [(row.relation, row.check) for row in rows] == list(stated)


@pytest.mark.parametrize(
    ("value", "threshold"), [(0.150, 0.18), (0.0208, 0.04), (0.142, 0.16), (0.322, 0.34), (1.0, 1.0), (1.3, 1.32)]
)
def test_a_proposed_threshold_is_the_value_with_a_margin(value: float, threshold: float):
    found = AuditFinding("likes", "near duplicates", value, 0.02, False, "")
    assert proposed([found]) == {("likes", "near duplicates"): threshold}


def test_general_thresholds_of_a_readme_hold_for_all_relations(clean: Task):
    for check in ("best constant", "near duplicates"):
        strict = audit_task(clean, thresholds={(ALL, check): -1.0, ("likes", check): 0.5})
        assert {found.relation for found in strict if not found.ok} == {"one", "told"}


HEAD = "| relation | check | value | threshold | what was seen |\n|---|---|---|---|---|\n"
GOOD = "| all | best constant | 0.1 | 0.1 | |"
MALFORMED = {
    "no table": ("Later.", "README.md:3: no table in this section; expected a table with the columns relation, check"),
    "other columns": ("| relation | value |\n|---|---|", "README.md:7: '| relation | value |'; expected a table"),
    "no rule": (HEAD.splitlines()[0], "README.md:7: "),
    "short row": (HEAD + GOOD.replace("| |", "|"), "README.md:9: a row of 4 cells; expected 5"),
    "no number": (HEAD + GOOD.replace("0.1 | |", "high | |"), "README.md:9: 'high'; expected a number"),
    "not finite": (HEAD + GOOD.replace("| 0.1 | 0.1", "| nan | 0.1"), "README.md:9: 'nan'; expected a number"),
    "unknown check": (HEAD + GOOD.replace("constant", "constan"), "README.md:9: unknown check 'best constan'; did you"),
    "unknown relation": (HEAD + GOOD.replace("all", "like"), "unknown relation 'like'; did you mean 'likes'"),
    "twice": (f"{HEAD}{GOOD}\n{GOOD}", "README.md:10: a second row for all / best constant"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_table_is_one_line(case: str, clean: Task, tmp_path: Path):
    table, expected = MALFORMED[case]
    (tmp_path / "README.md").write_text(as_readme(table), encoding="utf-8")
    with pytest.raises(TaskError) as raised:
        read_table(replace(clean, folder=tmp_path))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_readme_without_the_section_states_nothing(clean: Task, tmp_path: Path):
    assert read_table(replace(clean, folder=tmp_path)) is None
    (tmp_path / "README.md").write_text("# A task\n", encoding="utf-8")
    assert read_table(replace(clean, folder=tmp_path)) is None


def test_bars_in_what_was_seen_do_not_break_the_table(clean: Task, tmp_path: Path):
    rows = table_rows([AuditFinding("likes", "answer in text", 0.5, 0.0, False, "a | b")], {})
    (tmp_path / "README.md").write_text(as_readme(markdown(rows)), encoding="utf-8")
    assert read_table(replace(clean, folder=tmp_path))["likes", "answer in text"].value == 0.5


# Under a tokenizer


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights, whose tokenizer has one token for each word between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False)
    facts, colours = make_facts(), [fact["answer"] for fact in make_facts()]
    texts = ["The answer is light dark straw snow", *colours, *(fact["subject"] for fact in facts)]
    tokenizer.train_from_iterator([*texts, *_words_of_the_open_relation()], trainer)
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder


def _words_of_the_open_relation() -> list[str]:
    from tests.audit_tasks import names

    colours = [name.lower() for name in itertools.islice(names(7), 32)]
    return [*colours, *(f"{colour}-like" for colour in colours)]


def under(folder: Path, task: Task) -> list[AuditFinding]:
    from lensbench.models.loading import load_tokens

    return audit_task(task, load_tokens(str(folder)))


def with_tokens(tmp_path: Path) -> dict[str, Path]:
    """Tasks that only a tokenizer shows to be wrong, by the check that finds it."""
    relation, facts = make_relation(), make_facts()
    lighter = {"amber": "light amber", "ivory": "light ivory"}
    mixed = [fact | {"answer": lighter.get(fact["answer"], fact["answer"])} for fact in facts]
    sets = [[lighter.get(answer, answer) for answer in relation["choice_sets"][0]]]
    named = {"amber": ["dark amber"], "ivory": ["dark ivory"]}
    aliases = [fact | {"aliases": named.get(fact["answer"], [])} for fact in facts]
    first = relation | {"subject": relation["subject"] | {"test": ["'{subject} sang"]}}
    prompt = relation | {"inspection": ["({subject} likes the colour"]}
    made = {
        "token collisions": (relation | {"choice_sets": sets}, mixed),
        "alias token collisions": (relation, aliases),
        "read at token 0": (first, facts),
        "placeholder": (prompt, facts),
    }
    return {check: write(tmp_path / check.replace(" ", "_"), {"likes": task}) for check, task in made.items()}


def test_each_check_under_a_tokenizer_finds_its_leak(word_folder: Path, tmp_path: Path):
    for check, folder in with_tokens(tmp_path).items():
        task = load_task(str(folder))
        assert failed(audit_task(task)) == set(), "without a tokenizer nothing is to be seen"
        found = failed(under(word_folder, task))
        assert found == {("likes", "read at token 0" if check == "placeholder" else check)}


def test_a_clean_task_passes_under_a_tokenizer(word_folder: Path, clean: Task):
    findings = under(word_folder, clean)
    assert failed(findings) == set()
    assert {found.check for found in findings} == set(DEFAULT_THRESHOLDS)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    from lensbench.models.loading import load_tokens

    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LensbenchError, match=r"the tokenizer of .* cannot be read") as raised:
        load_tokens(str(tmp_path))
    assert "\n" not in str(raised.value)


# The command


def lensbench(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LENSBENCH_CACHE": str(cwd / "cache"), "COLUMNS": "100"}
    command = [sys.executable, "-m", "lensbench", "audit", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command in this process: its status, and what it printed to each stream."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from lensbench.cli import main

        monkeypatch.setattr(sys, "argv", ["lensbench", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_a_clean_task_ends_with_status_0(clean: Task, tmp_path: Path):
    done = lensbench(clean.folder, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is within the default thresholds" in done.stdout
    assert "FAILED" not in done.stdout


def test_a_bad_task_ends_with_status_1_and_one_line(bad: Task, tmp_path: Path):
    done = lensbench(bad.folder, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "answer_in_text / answer in text (0.250 > 0)" in done.stderr
    assert " and 9 more; " in done.stderr
    assert done.stdout.count("FAILED") == len(PLANTS) + len(TOGETHER["too few classes"])


def test_the_command_goes_by_the_readme_it_has_printed(tmp_path: Path, command):
    folder = write(tmp_path / "uneven", {"likes": planted("best constant")})
    assert command(folder)[0] == 1
    status, table, _ = command(folder, "--markdown", "--propose")
    assert status == 0
    (folder / "README.md").write_text(as_readme(table.strip()), encoding="utf-8")
    status, shown, errors = command(f"{folder}/likes")
    assert (status, errors) == (0, "")
    assert "is within the README's thresholds" in shown
    assert command(folder, "--markdown") == (0, table, "")


def test_a_tokenizer_is_enough_for_the_command(word_folder: Path, tmp_path: Path):
    folder = with_tokens(tmp_path)["token collisions"]
    done = lensbench(folder, "--model", word_folder, cwd=tmp_path)
    assert done.returncode == 1
    assert "likes / token collisions (0.500 > 0)" in done.stderr.splitlines()[-1]


WRONG = {
    ("attribute_extractio",): (2, "did you mean 'attribute_extraction'?"),
    ("attribute_extraction", "--model", "smollm2-135"): (2, "did you mean 'smollm2-135m'?"),
    ("attribute_extraction", "--propose"): (2, "add --markdown"),
    ("broken",): (1, "README.md:3: no table in this section"),
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command):
    write(tmp_path / "broken", {"likes": (make_relation(), make_facts())}, readme=as_readme("Later."))
    monkeypatch.chdir(tmp_path)
    expected_status, expected = WRONG[arguments]
    status, _, errors = command(*arguments)
    assert (status, len(errors.splitlines())) == (expected_status, 1)
    assert expected in errors


@pytest.mark.parametrize("arguments", [["--help"], ["no_such_task"], ["clean"]], ids=" ".join)
def test_without_a_model_torch_is_not_imported(arguments: list[str], clean: Task):
    code = (
        "import sys\nfrom lensbench.cli import main\n"
        f"sys.argv = {['lensbench', 'audit', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=clean.folder.parent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
