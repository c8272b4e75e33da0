"""Functions and classes of users, found by module or by file."""

import sys
from pathlib import Path

import pytest

from lensbench.errors import UsageError
from lensbench.utils.imports import import_attribute


@pytest.fixture(autouse=True)
def path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "tool_of_mine.py").write_text("VALUE = 3\n")
    monkeypatch.chdir(tmp_path)
    assert import_attribute("x", "here/tool_of_mine.py:VALUE") == 3
    assert import_attribute("x", f"{folder}/tool_of_mine.py:VALUE") == 3
    monkeypatch.chdir(folder)
    assert import_attribute("x", "tool_of_mine.py:VALUE") == 3
    assert import_attribute("x", "tool_of_mine:VALUE") == 3


def test_another_module_is_never_taken_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("VALUE = 3\n")
    with pytest.raises(UsageError, match="a module called json is there already"):
        import_attribute("x", f"{tmp_path}/json.py:VALUE")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_name_twice.py").write_text(f"VALUE = {name!r}\n")
    assert import_attribute("x", f"{tmp_path}/one/same_name_twice.py:VALUE") == "one"
    with pytest.raises(UsageError, match="a module called same_name_twice is there already"):
        import_attribute("x", f"{tmp_path}/two/same_name_twice.py:VALUE")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere.py:VALUE", "there is no file nowhere.py"),
        ("no_such_module:VALUE", "no module 'no_such_module' on the Python path; give the file, as in"),
        ("my-file.py:VALUE", "'my-file' cannot be the name of a module; rename the file"),
        ("breaks.py:VALUE", "importing breaks failed: ZeroDivisionError"),
        ("empty.py:VALUE", "module empty has no 'VALUE'"),
        ("json:", "module json has no ''"),
    ],
)
def test_what_is_wrong_is_said(given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-file.py").touch()
    (tmp_path / "empty.py").touch()
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=told) as caught:
        import_attribute("thing", given)
    assert "\n" not in str(caught.value)
