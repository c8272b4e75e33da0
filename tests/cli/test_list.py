"""`lensbench list`."""

import json
from pathlib import Path

from tests.command import lensbench, refused


def test_all_names_fit_a_screen(tmp_path: Path) -> None:
    done = lensbench("list", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["models", "tasks", "inspectors", "baselines"]
    assert sum(len(line) // 80 + 1 for line in lines) <= 24
    for expected in ("smollm2-135m", "attribute_extraction", "patchscope", "shuffled"):
        assert expected in done.stdout


def test_a_kind_is_a_line_for_each(tmp_path: Path) -> None:
    done = lensbench("list", "methods", cwd=tmp_path)
    assert done.stdout == lensbench("list", "inspectors", cwd=tmp_path).stdout
    (row,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["logit_lens"]]
    assert "what the model would say if layer l were its last" in row
    assert "…" not in done.stdout, "nothing is cut where the output is piped"


def test_a_name_is_shown_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    shown = lensbench("list", "patchscope", cwd=tmp_path).stdout
    for told in ("activation, question", "target_layers=(1,)", "one a target layer"):
        assert told in shown
    relations = lensbench("list", "attribute_extraction", cwd=tmp_path).stdout
    assert "attribute_extraction/country_capital" in relations
    both = json.loads(lensbench("list", "inversion", "--json", cwd=tmp_path).stdout)
    assert set(both) == {"inspectors", "baselines"}, "a method and a baseline have this name"


def test_json_has_everything(tmp_path: Path) -> None:
    found = json.loads(lensbench("list", "--json", cwd=tmp_path).stdout)
    assert set(found) == {"models", "tasks", "inspectors", "baselines"}
    assert {"inspector", "what_it_does", "reads", "parameters"} <= set(found["inspectors"][0])


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    assert "unknown name 'modles'; did you mean 'models'" in refused(lensbench("list", "modles", cwd=tmp_path), 2)


def test_a_relation_is_found_without_its_task(tmp_path: Path) -> None:
    assert "country → capital" in lensbench("list", "country_capital", cwd=tmp_path).stdout
