"""The settings of trainings: pydantic models that are checked before a model is loaded."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lensbench.errors import UsageError, unknown_name
from lensbench.models.adapters import require_peft

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
Settings = TypeVar("Settings", bound=BaseModel)


def check_settings(kind: type[Settings], given: Mapping[str, Any], what: str, form: str) -> Settings:
    """Make settings; those that are not given have their defaults.

    Args:
        kind: the settings' class.
        given: settings by name.
        what: the settings are of, for errors.
        form: how errors write a setting: `--{option} {value}`, or with its `{name}`.

    Raises:
        UsageError: an unknown setting, a value that cannot be, or PEFT is not installed.
    """
    try:
        settings = kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise unknown_name(f"setting of {what}", name, kind.model_fields) from None
        shown = form.format(name=name, option=name.replace("_", "-"), value=repr(first["input"]))
        raise UsageError(f"{shown}: {_expected(first['type'], first['msg'], first.get('ctx', {}))}") from None
    require_peft()
    return settings


def _expected(kind: str, message: str, limits: Mapping[str, Any]) -> str:
    if kind == "greater_than_equal":
        return f"expected {limits['ge']} or more"
    if kind == "greater_than":
        return f"expected more than {limits['gt']:g}"
    if kind.endswith("_type"):
        return f"expected a value of the kind {kind.removesuffix('_type').replace('string', 'str')}"
    return message.removeprefix("Value error, ")
