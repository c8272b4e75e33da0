"""What Python code may give in place of names: models, tasks, baselines, and classes or objects of inspectors."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict

from pydantic import BeforeValidator, PlainSerializer

from lensbench.baselines.spec import Baseline
from lensbench.errors import UsageError
from lensbench.models.sources import split_edits
from lensbench.tasks import Task
from lensbench.utils.code import SOURCE, keep_source

if TYPE_CHECKING:
    from lensbench.inspectors.base import Inspector
    from lensbench.models.language_model import LanguageModel

LOG = logging.getLogger("lensbench")


def name_of(given: Any) -> str:
    """Return the name of what was given by name or as an object, as `run.json` has it."""
    return given if isinstance(given, str) else getattr(given, "spec", "") or str(given.name)


def edits_of(given: Any, *, offline: bool = False) -> tuple[str, tuple[Path, ...]]:
    """Return a model's name without its edits, and the folders of these; an object's name may be anything.

    Raises:
        UsageError: a name with an edit that is not there.
    """
    try:
        return split_edits(name_of(given), offline=offline)
    except UsageError:
        if isinstance(given, str):
            raise
        return name_of(given), ()


def _model(given: Any) -> Any:
    # Without importing torch: who has a model has imported its class.
    module = sys.modules.get("lensbench.models.language_model")
    if isinstance(given, str) or (module is not None and isinstance(given, module.LanguageModel)):
        return given
    raise ValueError(
        "expected a name, or a model of lensbench.load_model, which also takes a model of transformers with its "
        "tokenizer"
    )


def _task(given: Any) -> Any:
    if isinstance(given, str | Task):
        return given
    raise ValueError("expected names, or tasks of lensbench.load_task")


def _inspector(given: Any) -> Any:
    if isinstance(given, type):
        from lensbench.inspectors.catalog import load_inspector

        if keep_source(load_inspector(given)) is None and SOURCE in vars(given):
            LOG.warning("the source of %s cannot be told: its cells are made again whenever it runs", given.__name__)
        return given
    if isinstance(given, str):
        return given
    raise ValueError("expected names, subclasses of lensbench.Inspector, or objects of such classes")


def _baseline(given: Any) -> Any:
    if isinstance(given, str | Baseline):
        return given
    raise ValueError("expected names, .toml files, or objects of lensbench.baselines.spec.Baseline")


_BY_NAME = PlainSerializer(name_of, return_type=str)
if TYPE_CHECKING:
    GivenModel: TypeAlias = str | LanguageModel
    GivenTask: TypeAlias = str | Task
    GivenInspector: TypeAlias = str | type[Inspector]
    GivenBaseline: TypeAlias = str | Baseline
else:
    GivenModel = Annotated[Any, BeforeValidator(_model), _BY_NAME]
    GivenTask = Annotated[Any, BeforeValidator(_task), _BY_NAME]
    GivenInspector = Annotated[Any, BeforeValidator(_inspector), _BY_NAME]
    GivenBaseline = Annotated[Any, BeforeValidator(_baseline), _BY_NAME]


def _path(value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError


class Settings(TypedDict, total=False):
    """The fields of `RunConfig` as keyword arguments, for type checkers and editors."""

    verbalizer: GivenModel | None
    unplanted: GivenModel | None
    twin: GivenModel | None
    reference: GivenModel | None
    tasks: GivenTask | Sequence[GivenTask]
    inspectors: "GivenInspector | Inspector | Sequence[GivenInspector | Inspector]"
    baselines: GivenBaseline | Sequence[GivenBaseline] | None
    sites: str | Sequence[str] | None
    layers: str | Sequence[int]
    subjects: Path | str | None
    limit: int | None
    score: Literal["corrected", "raw"]
    whole_answers: bool
    seed: int
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"]
    device_map: Literal["auto"] | None
    memory: int | str
    executor: Literal["local", "ray"]
    workers: int | None
    isolate: bool
    revision: str | None
    offline: bool
    chat_template: bool
    module_paths: dict[str, str] | str | None
    log: str | None
    model_args: dict[str, Any] | str | None
    out: Path | str | None
    parameters: dict[str, dict[str, Any]]


def with_parameters_of_objects(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which objects of inspectors are replaced by their classes, and by parameters.

    Raises:
        UsageError: a parameter of an object that no file can hold, such as a tensor.
    """
    given = settings.get("inspectors")
    several = list(given) if isinstance(given, list | tuple) else None
    classes, parameters = [], dict(settings.get("parameters") or {})
    for one in [given] if several is None else several:
        if isinstance(one, str | type | None) or not hasattr(one, "parameters"):
            classes.append(one)
            continue
        kind, own = type(one), one.parameters()
        for name, value in own.items():
            try:
                json.dumps(value, default=_path)
            except (TypeError, ValueError):
                raise UsageError(
                    f"inspector {kind.__name__}: {name} = {value!r:.60} cannot be written to a file; give numbers, "
                    "texts and lists, and make the rest in `fit`"
                ) from None
        classes.append(kind)
        parameters[kind.name] = {**own, **parameters.get(kind.name, {})}
    found = {"inspectors": classes[0] if several is None else classes, "parameters": parameters}
    return {**settings, **{name: value for name, value in found.items() if value}}
