"""What was proved or measured of a model, kept for later runs: which shortcuts it allows, how much memory a row takes.

It is filed under everything that it depends on: the model's weights, where and how it runs, the versions of torch and
transformers, and our own code. A file that names anything else, or is damaged, is not used. See docs/scale.md.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from lensbench.utils.cache import PROOFS, cache_path, read_sealed, write_sealed

LOG = logging.getLogger("lensbench")
Found = TypeVar("Found")


class Provable(Protocol):
    """A model as far as proofs are about it."""

    name: str
    module: Any
    parts: Any
    cache: Any
    proofs: Path | None

    @property
    def fingerprint(self) -> str:
        """Names its weights."""

    @property
    def attention(self) -> str:
        """How it attends."""

    @property
    def dtype(self) -> torch.dtype:
        """Its precision."""

    @property
    def device(self) -> torch.device:
        """Where it is."""


Model = TypeVar("Model", bound=Provable)


def keep_proofs(model: Model) -> Model:
    """Let what is proved of a model be kept in the user's cache, and be taken from there."""
    model.proofs = cache_path() / PROOFS
    return model


def proved(
    model: Provable, what: str, prove: Callable[[], Found], holds: Callable[[Found], bool] | None = None
) -> Found:
    """Return what is proved or measured of a model: once in a process, and once at all where proofs are kept.

    Args:
        model: the model.
        what: a name for what is proved; all that it depends on besides the model belongs to it.
        prove: does so, and returns a text, a number or a truth value.
        holds: a cheap trial of what an earlier run found. Where it fails, it is proved anew.
    """
    found: Found = model.cache.get_or_compute(("proved", what), lambda: _kept_or_proved(model, what, prove, holds))
    return found


def _kept_or_proved(
    model: Provable, what: str, prove: Callable[[], Found], holds: Callable[[Found], bool] | None
) -> Found:
    if model.proofs is None:
        return prove()
    depends = describe(model)
    digest = hashlib.sha256(json.dumps([depends, what], sort_keys=True).encode()).hexdigest()[:24]
    file = model.proofs / f"{digest}.json"
    earlier: Found | None = _read(file, depends, what)
    if earlier is not None:
        if holds is None or holds(earlier):
            return earlier
        LOG.warning(
            "%s: %s = %r, found by an earlier run, no longer holds; it is tried anew", model.name, what, earlier
        )
    found = prove()
    _write(file, {"depends": depends, "what": what, "found": found})
    return found


def describe(model: Provable) -> dict[str, str]:
    """Return all that a proof about a model depends on, besides what is proved."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else _cpu()
    return {
        "fingerprint": model.fingerprint,
        "class": f"{type(model.module).__module__}.{type(model.module).__qualname__}",
        "attention": model.attention,
        "dtype": str(model.dtype),
        "device": f"{model.device.type} {device}",
        "precision": torch.get_float32_matmul_precision(),
        "paths": repr(model.parts.paths),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "lensbench": f"{version('lensbench')} {_code()}",
    }


def _cpu() -> str:
    capability: Callable[[], str] = torch.backends.cpu.get_cpu_capability
    return capability()


@cache
def _code() -> str:
    """Return a digest of the files that passes are made of."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path, depends: dict[str, str], what: str) -> Any:
    """Return what a file says was found; None where there is none, or one that is damaged or about something else."""
    content = read_sealed(file)
    if content is not None and (content.get("depends"), content.get("what")) != (depends, what):
        LOG.warning("%s is about another model, and is not used", file)
        return None
    return content and content["found"]


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        write_sealed(file, content)
    except OSError as error:
        LOG.warning("what was found out about a model is not kept: %s", error.strerror or error)
