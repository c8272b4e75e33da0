"""Baselines as files: what each rules out, and the function that does it.

Nothing in here imports torch, so that names and files are checked before a model is loaded.
"""

import ast
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.tasks.load import data_root
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.imports import import_attribute, look_here_last
from lensbench.utils.settings import settings_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from lensbench.harness.crossfit import CrossFit, Outcome

Question = Literal["uses_activation", "beats_text", "target_specific", "used_by_model", "diagnostic"]
QUESTIONS: tuple[Question, ...] = get_args(Question)
Role = Literal["unplanted", "twin", "reference"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Models besides target and verbalizer that a baseline may need."""
GROUP = "lensbench.baselines"


class Baseline(BaseModel):
    """A rival explanation of a score.

    Attributes:
        name: of the file.
        rules_out: the explanation, in a sentence that begins "The score ...".
        question: the question that it belongs to.
        function: a function of this package, `module:function`, or the name of an entry point in the group
            `lensbench.baselines`.
        learns_from: the supervision of the methods that it is a fair baseline of.
        reads: sources that a method must read for it to make sense.
        trained: whether it is a baseline only of methods whose verbalizer was trained beforehand.
        given: whether it is a baseline only in runs that ask about a relation whose sources state the answer.
        parameters: keyword arguments of the function.
        essential: whether a verdict stays open where it cannot answer the relation's questions.
        optional: whether it is run only where it is named, and no verdict waits for it: for baselines that take long.
        from_scores: whether it is computed from the method's own scores where the method reads nothing of an item but
            its activation, and then not run.
        stride: it is asked at the first and the last of the layers, and at those between that are at least so many
            apart; for baselines that cost as much as the method itself.
        needs: models that it reads besides target and verbalizer; in a run without them it is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    rules_out: str
    question: Question
    function: str
    learns_from: list[Literal["nothing", "corpus", "labels"]] = Field(default=["nothing", "corpus", "labels"])
    reads: list[Literal["activation", "question", "choices", "text", "components", "target"]] = Field(default=[])
    trained: bool = False
    given: bool = False
    parameters: dict[str, Any] = Field(default={})
    essential: bool = False
    optional: bool = False
    from_scores: bool = False
    stride: int = Field(default=1, ge=1)
    needs: list[Role] = Field(default=[])

    def applies_to(self, learns_from: str, reads: frozenset[str], *, trained: bool = False) -> bool:
        """Return whether it is a fair baseline of a method with this supervision and these sources.

        Args:
            learns_from: the method's supervision.
            reads: its sources.
            trained: whether its verbalizer was trained beforehand.
        """
        return learns_from in self.learns_from and set(self.reads) <= reads and (trained or not self.trained)

    def files(self) -> list[Path]:
        """Return the files in the folders that its parameters name: with other content, its cells are run again."""
        named = [Path(value).expanduser() for value in self.parameters.values() if isinstance(value, str)]
        return sorted(file for folder in named if folder.is_dir() for file in folder.iterdir() if file.is_file())

    def run(self, method: "CrossFit") -> "list[Outcome]":
        """Answer for the method's bench.

        Raises:
            NotApplicableError: it cannot answer the relation's questions.
        """
        return find_function(self.function)(self._asked(method), **self.parameters)

    def _asked(self, method: "CrossFit") -> "CrossFit":
        if self.stride == 1:
            return method
        return method.with_layers(strided(method.bench.context.layers, self.stride))


def strided(layers: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the first and the last of the layers, and those between that are at least `stride` apart."""
    kept = list(layers[:1])
    for layer in layers[1:-1]:
        if layer - kept[-1] >= stride:
            kept.append(layer)
    return (*kept, *layers[1:][-1:])


def find_baselines() -> dict[str, Baseline]:
    """Read every file of `baselines/`.

    Raises:
        LensbenchError: a file that does not say what a baseline is.
    """
    return {path.stem: _read(path) for path in sorted((data_root() / "baselines").glob("*.toml"))}


def choose_baselines(names: Sequence[str | Baseline] | None) -> dict[str, Baseline]:
    """Return the baselines of these names, or of these files (`./mine.toml`), or as they are given.

    None and `all` stand for all but optional ones.

    Raises:
        UsageError: no baseline of that name, or two of one name.
        LensbenchError: a file that does not say what a baseline is.
    """
    known = find_baselines()
    usual = [name for name, baseline in known.items() if not baseline.optional]
    chosen: dict[str, Baseline] = {}
    for given in (
        one for name in (["all"] if names is None else names) for one in (usual if name == "all" else [name])
    ):
        baseline = given if isinstance(given, Baseline) else _find(given, known)
        if baseline.name in known and baseline != known[baseline.name]:
            where = given if isinstance(given, str) else "a baseline of yours"
            raise UsageError(f"{where} has the name of the baseline {baseline.name!r}; rename the file")
        if baseline.question == "used_by_model" and baseline.name not in known:
            raise UsageError(
                f"baseline {baseline.name} has the question 'used_by_model', which interventions answer; choose another"
            )
        if chosen.setdefault(baseline.name, baseline) != baseline:
            raise UsageError(f"two baselines are called {baseline.name!r}; rename one")
    return chosen


def _find(name: str, known: Mapping[str, Baseline]) -> Baseline:
    if name in known:
        return known[name]
    if name.endswith(".toml"):
        return _read(Path(name))
    hint = "or none, or the path of a .toml file; see `lensbench list baselines`"
    raise unknown_name("baseline", name, known, hint)


def _read(path: Path) -> Baseline:
    if not path.is_file():
        raise UsageError(f"no baseline file {path}; give the path of a .toml file, or a name")
    try:
        with reading(path, "mend the file; see docs/baselines.md"):
            data = tomllib.loads(read_text(path))
        if "name" in data:
            raise LensbenchError(f"{path}: name = {data['name']!r}; a baseline has the name of its file")
        baseline = Baseline.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        if first["type"] == "missing":
            raise LensbenchError(f"{path}: no {key}; see docs/baselines.md") from None
        if first["type"].endswith("_type"):
            expected = first["type"].removesuffix("_type").replace("string", "str")
            raise LensbenchError(f"{path}: {key} = {first['input']!r}; expected {expected}") from None
        keys = set(Baseline.model_fields) - {"name"}
        raise LensbenchError(f"{path}: {settings_error(error, keys, 'key')}") from None
    return _with_function_beside(baseline, path.parent)


def _with_function_beside(baseline: Baseline, folder: Path) -> Baseline:
    """Return the baseline with its function found from the folder of its file, whatever the current folder is."""
    file, _, attribute = baseline.function.rpartition(":")
    if not file:
        return baseline
    if not file.endswith(".py"):
        look_here_last(folder)
        return baseline
    return baseline.model_copy(update={"function": f"{(folder / file).resolve()}:{attribute}"})


@cache
def _functions() -> dict[str, str]:
    """Return the module of each of our baseline functions, without importing any of them.

    A baseline function is a public one of a module in this folder that returns a list of outcomes.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.returns is None:
                continue
            if ast.unparse(node.returns) == "list[Outcome]":
                found[node.name] = f"{__package__}.{path.stem}"
    return found


def find_function(name: str) -> "Callable[..., list[Outcome]]":
    """Return a baseline's function.

    Raises:
        LensbenchError: nothing of that name.
    """
    found: Callable[..., list[Outcome]]
    ours = _functions()
    if name in ours:
        found = getattr(import_module(ours[name]), name)  # imports torch
        return found
    from importlib.metadata import entry_points  # takes longer to import than this module

    plugged = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in plugged:
        found = plugged[name].load()
        return found
    if ":" not in name:
        raise unknown_name("baseline function", name, {*ours, *plugged}, "or give module:function or file.py:function")
    found = import_attribute(f"baseline function {name!r}", name)
    return found
