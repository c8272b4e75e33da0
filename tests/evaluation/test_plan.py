"""What makes stored cells stale: everything that a prediction is made by."""

from pathlib import Path

import pytest

import lensbench
from lensbench.evaluation.evaluate import mixed
from lensbench.evaluation.plan import ENGINE, Cell
from lensbench.utils.code import code_of, digest_of_files
from tools.shape import graph

PACKAGE = Path(lensbench.__file__).parent
# What shows, checks or files results, and changes none; a method's and a baseline's own modules are in their digests.
HARMLESS = (
    "lensbench.errors", "lensbench.utils", "lensbench.inspectors.lenses", "lensbench.inspectors.base",
    "lensbench.inspectors.catalog", "lensbench.evaluation.config", "lensbench.evaluation.control_models",
    "lensbench.evaluation.given",
    "lensbench.evaluation.plan", "lensbench.baselines.spec",
)  # fmt: skip


def test_what_predictions_are_made_by_is_in_the_digest() -> None:
    imports = graph(PACKAGE.parent)
    reached, waiting = set(), ["lensbench.evaluation.runner", "lensbench.baselines.common"]
    while waiting:
        module = waiting.pop()
        if module in reached or module.startswith(HARMLESS) or module == "lensbench":
            continue
        reached.add(module)
        waiting += imports[module]
    prefixes = tuple(f"lensbench.{name.removesuffix('.py').replace('/', '.')}" for name in ENGINE)
    packages = {"lensbench.inspectors", "lensbench.evaluation", "lensbench.baselines", "lensbench.results"}
    missing = {module for module in reached if not module.startswith(prefixes)} - packages
    assert not missing, f"add to ENGINE, or say why not in HARMLESS: {sorted(missing)}"
    assert all((PACKAGE / name).exists() for name in ENGINE)


def test_comments_docstrings_and_layout_are_no_code(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text('"""One."""\n\ndef f(x):\n    """Add."""\n    return x + 1\n')
    before = code_of(file)
    file.write_text(
        '"""Two."""\n# a comment\ndef f(x):  # another\n\n    """Add, in other words."""\n    return (x\n + 1)\n'
    )
    assert code_of(file) == before
    file.write_text('"""One."""\n\ndef f(x):\n    """Add."""\n    return x + 2\n')
    assert code_of(file) != before


def test_the_digest_of_files_is_kept_and_follows_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "code.py"
    file.write_text("x = 1\n")
    before = digest_of_files([file])
    (kept,) = (tmp_path / "cache").rglob("*.json")
    file.write_text("x = 1  # a comment\n")
    assert digest_of_files([file]) == before
    file.write_text("x = 2\n")
    assert digest_of_files([file]) != before
    file.write_text("x = 1\n")
    kept.write_text(kept.read_text().replace(before, "0" * 12))
    assert digest_of_files([file]) == before  # what was tampered with is worked out again
    assert "is damaged" in caplog.text


def test_a_method_and_its_baselines_are_run_in_an_order_that_the_seed_draws() -> None:
    def cell(task: str, inspector: str, baseline: str) -> Cell:
        digest = f"{task}{inspector}{baseline}"
        return Cell(task, (), "subject", inspector, baseline, "", digest)

    cells = [
        cell(task, inspector, baseline)
        for task in ("a", "b")
        for inspector in ("probe", "lens")
        for baseline in ("none", "shuffled", "random_model", "control_task")
    ]
    orders = [mixed(cells, seed) for seed in range(20)]
    assert all(sorted(order, key=cells.index) == cells for order in orders)
    # What shares activations and fits stays together.
    assert {tuple((one.task, one.inspector) for one in order) for order in orders} == {
        tuple((one.task, one.inspector) for one in cells)
    }
    assert len({order[0].baseline for order in orders}) == 4
    for seed, order in enumerate(orders):
        assert mixed(order[5:], seed) == order[5:], "a run that is resumed keeps the order"
