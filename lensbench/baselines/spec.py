"""Baselines: rival explanations of a score.

Each is a file in `baselines/` and a function: of `rivals/`, of a module of the user's, or behind an entry point.

Nothing in here imports torch, so that names and files are checked before a model is loaded.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lensbench.errors import LensbenchError, UsageError, import_attribute, unknown_name
from lensbench.inspectors.catalog import SOURCES, SUPERVISION
from lensbench.tasks import data_root

if TYPE_CHECKING:
    from lensbench.baselines import Outcome, Rival
    from lensbench.harness.bench import CrossFit

Question = Literal["uses_activation", "beats_text", "target_specific", "diagnostic"]
QUESTIONS: tuple[Question, ...] = get_args(Question)
RELATIVES = ("unplanted", "twin", "reference")
"""Models besides target and verbalizer that a baseline may need."""
GROUP = "lensbench.baselines.spec"
_KEYS = {
    "rules_out": str,
    "question": str,
    "function": str,
    "learns_from": list,
    "reads": list,
    "parameters": dict,
    "essential": bool,
    "optional": bool,
    "needs": list,
}


@dataclass(frozen=True)
class Baseline:
    """A rival explanation.

    Attributes:
        name: of the file.
        rules_out: the explanation, in a sentence that begins "The score ...".
        question: the question that it is a rival in.
        function: a function of `lensbench/baselines/`, `module:function`, or the name of an entry point in the group
            `lensbench.baselines.spec`.
        learns_from: the supervision of the methods that it is a fair rival of.
        reads: sources that a method must read for it to make sense.
        parameters: keyword arguments of the function.
        essential: whether a verdict stays open where it cannot answer the relation's questions.
        optional: whether it is run only where it is named, and no verdict waits for it: for rivals that take long.
        needs: models that it reads besides target and verbalizer; in a run without them it is left out.
    """

    name: str
    rules_out: str
    question: Question
    function: str
    learns_from: frozenset[str]
    reads: frozenset[str] = frozenset()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    essential: bool = False
    optional: bool = False
    needs: tuple[str, ...] = ()

    def applies_to(self, learns_from: str, reads: frozenset[str]) -> bool:
        """Whether it is a fair rival of a method with this supervision and these sources."""
        return learns_from in self.learns_from and self.reads <= reads

    def run(self, method: "CrossFit") -> "list[Outcome]":
        """Answer for the method's bench.

        Raises:
            NotApplicableError: it cannot answer the relation's questions.
        """
        return find_function(self.function)(method, **self.parameters)


def find_baselines() -> dict[str, Baseline]:
    """Read every file of `baselines/`.

    Raises:
        LensbenchError: a file that does not say what a baseline is.
    """
    return {path.stem: _read(path) for path in sorted((data_root() / "baselines").glob("*.toml"))}


def choose_baselines(names: Iterable[str] | None) -> dict[str, Baseline]:
    """Return the baselines of these names, or of these files (`./mine.toml`); None takes all but optional ones.

    Raises:
        UsageError: no baseline of that name, or two of one name.
        LensbenchError: a file that does not say what a baseline is.
    """
    known = find_baselines()
    chosen: dict[str, Baseline] = {}
    usual = [name for name, baseline in known.items() if not baseline.optional]
    for name in usual if names is None else dict.fromkeys(names):
        if name in known:
            baseline = known[name]
        elif name.endswith(".toml"):
            baseline = _read(Path(name))
            if baseline.name in known:
                raise UsageError(f"{name} is called like the baseline {baseline.name!r}; rename the file")
        else:
            raise unknown_name(
                "baseline", name, known, "or none, or the path of a .toml file; see `lensbench list baselines`"
            )
        if baseline.name in chosen:
            raise UsageError(f"two of the baselines are called {baseline.name!r}; rename one")
        chosen[baseline.name] = baseline
    return chosen


def _read(path: Path) -> Baseline:
    if not path.is_file():
        raise UsageError(f"no baseline file {path}; give the path of a .toml file, or a name")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        _check(data)
        return Baseline(
            name=path.stem,
            rules_out=data["rules_out"],
            question=data["question"],
            function=data["function"],
            learns_from=frozenset(data.get("learns_from", SUPERVISION)),
            reads=frozenset(data.get("reads", ())),
            parameters=data.get("parameters", {}),
            essential=data.get("essential", False),
            optional=data.get("optional", False),
            needs=tuple(data.get("needs", ())),
        )
    except KeyError as error:
        raise LensbenchError(f"{path}: no {error.args[0]}; see docs/baselines.md") from None
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise LensbenchError(f"{path}: {error}") from None


def _check(data: dict[str, Any]) -> None:
    """Refuse what a baseline cannot have.

    Raises:
        UsageError: an unknown key or name, or a value of another type.
        KeyError: no question.
    """
    for key, value in data.items():
        if key not in _KEYS:
            raise unknown_name("key", key, _KEYS)
        if not isinstance(value, _KEYS[key]):
            raise UsageError(f"{key} = {value!r}; expected {_KEYS[key].__name__}")
    chosen = {"learns_from": SUPERVISION, "reads": SOURCES, "question": QUESTIONS, "needs": RELATIVES}
    for key, known in chosen.items():
        given = [data[key]] if key == "question" else data.get(key, [])
        for name in given:
            if name not in known:
                raise unknown_name(key, str(name), known)


def find_function(name: str) -> "Rival":
    """Return a baseline's function.

    Raises:
        LensbenchError: nothing of that name.
    """
    from lensbench.baselines import FUNCTIONS  # imports torch

    if name in FUNCTIONS:
        return FUNCTIONS[name]
    plugged = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in plugged:
        loaded: Rival = plugged[name].load()
        return loaded
    module, _, attribute = name.partition(":")
    if not attribute:
        raise unknown_name("baseline function", name, {*FUNCTIONS, *plugged}, "or give module:function")
    found: Rival = import_attribute(f"baseline function {name!r}", module, attribute)
    return found
