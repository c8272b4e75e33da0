"""The order of imports (each concept builds only on those before it), and what must not be imported early."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lensbench"

RESULTS = frozenset({"records", "statistics", "scored", "frames", "samples", "metrics", "measures", "summary"}) | {
    "contests",
    "differences",
    "emergence",
    "false_alarms",
    "golds",
    "power",
    "resampling",
    "whose",
}
# Each row may import from its own row and from those above.
ORDER: tuple[frozenset[str], ...] = (
    frozenset({"errors", "cache", "assets", "layers", "costs", "progress", "calibrations"}),
    frozenset({"tasks", "descriptions", "personas"}) | RESULTS,
    frozenset({"model"}),
    frozenset(
        {"patching", "residuals", "residual_cache", "learning", "corpus", "moments", "asking", "knowledge", "jacobians"}
    )
    | {"pairing", "affine_maps", "attribution"},
    frozenset({"handles", "evidence", "scoring", "sealing"}),
    frozenset(
        {
            "inspectors",
            "catalogue",
            "baselines",
            "bench",
            "lab",
            "returned",
            "next_token",
            "rivals",
            "text_readers",
            "implants",
        }
    )
    | {"oracle_training", "finetuning"},
    frozenset(
        {
            "config",
            "relatives",
            "models_of_run",
            "plan",
            "journal",
            "preparation",
            "run",
            "workshop",
            "execution",
            "ray_execution",
            "run_folder",
            "run_log",
            "comparing",
            "boards",
            "exporting",
            "scaffold",
            "estimate",
            "evaluation",
            "judging",
            "tuning",
            "testing",
            "cheats",
            "calibration",
            "analyses",
            "inspecting",
            "fitting",
            "audit",
            "doctor",
            "listings",
            "reported",
        }
    ),
    frozenset({"terminal", "cli", "__main__"}),
)
# Figures are made from records alone, without a model; only the command line may import them.
REPORT = frozenset({"report", "errors"}) | RESULTS


def place(concept: str) -> int | None:
    return next((row for row, concepts in enumerate(ORDER) if concept in concepts), None)


def allowed(concept: str) -> frozenset[str]:
    if concept == "report":
        return REPORT
    row = place(concept)
    assert row is not None
    below = frozenset().union(*ORDER[: row + 1])
    return below | {"report"} if "evaluation" in below else below


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, inside functions too, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import from lensbench by its full name"
            # `from lensbench import tasks` imports lensbench.tasks.
            names = [f"lensbench.{alias.name}" for alias in node.names] if node.module == "lensbench" else [node.module]
            yield from ((node.lineno, name) for name in names if name)


def test_every_concept_has_a_place() -> None:
    without = {concept for concept, _ in modules() if place(concept) is None} - {"report", "__init__"}
    assert not without, f"add {', '.join(sorted(without))} to the right row of ORDER"


def test_concepts_import_only_what_comes_before_them() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {concept} must not import {name}"
        for concept, path in modules()
        if concept == "report" or place(concept) is not None
        for line, name in imported(path)
        if name.startswith("lensbench.")
        and name.split(".")[1] not in allowed(concept)
        # Names that lensbench/__init__.py itself defines, such as __version__.
        and not name.split(".")[1].startswith("__")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_model_imports_transformers() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for concept, path in modules()
        if concept != "model"
        for line, name in imported(path)
        if name.split(".")[0] in {"transformers", "tokenizers", "huggingface_hub"}
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_postpones_annotations() -> None:
    # jaxtyping reads shapes at run time.
    wrong = [str(path) for _, path in modules() for _, name in imported(path) if name == "__future__"]
    assert not wrong


def early_imports(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('early:', *sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("early:").split())


@pytest.mark.parametrize(
    "module", ["lensbench", "tasks", "records", "statistics", "summary", "cache", "model.sources", "cli"]
)
def test_importing_does_not_import_torch(module: str) -> None:
    name = module if module == "lensbench" else f"lensbench.{module}"
    assert early_imports(f"import {name}") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["evaluate", "--help"],
        ["list"],
        ["list", "models"],
        ["list", "tasks"],
        ["list", "baselines"],
        ["evaluate", "--model", "smollm2-135n"],
        ["evaluate", "--tasks", "no_such_task"],
    ],
    ids=" ".join,
)
def test_help_lists_and_validation_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "from lensbench.cli import main\n"
        f"sys.argv = {['lensbench', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert early_imports(code) == set()
