"""Residuals on disk: a source is run once, whatever the number of methods and runs that read it."""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from lensbench.models.activations import Reading, Residuals, capture, tokens_per_batch
from lensbench.models.language_model import LanguageModel
from lensbench.utils.cache import atomic_folder, code_digest, folder_size, size_limit

LOG = logging.getLogger("lensbench")
FILE = "residuals.safetensors"


class ResidualCache:
    """Captured residuals in files that are mapped into memory: they are paged in as they are read.

    Args:
        folder: where the files are; None keeps nothing.
        limit: how many bytes they may take; what was read longest ago goes first. By default what
            `LENSBENCH_CACHE_LIMIT` says.
    """

    def __init__(self, folder: Path | None, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = size_limit() if limit is None else limit

    def read(self, model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
        """Return the residuals of these sites, from the disk where they have been captured before."""
        if self.folder is None:
            return capture(model, readings, layers)
        place = self.folder / _key(model, readings, layers)
        if not (place / FILE).exists():
            captured = capture(model, readings, layers)
            if not self._keep(place, captured):
                return captured
        with suppress(OSError):  # somebody else's cache may not be ours to touch
            os.utime(place)
        with safe_open(place / FILE, framework="pt") as file:
            return Residuals(tuple(layers), file.get_tensor("values").to(model.device))

    def _keep(self, place: Path, captured: Residuals) -> bool:
        """Write residuals, if there is room for them."""
        values = captured.values
        size = values.numel() * values.element_size()
        if size > self.limit:
            LOG.warning("residuals of %d MB are not kept: the cache limit is %d MB", size >> 20, self.limit >> 20)
            return False
        self._make_room(size)
        try:
            with atomic_folder(place) as partial:
                save_file({"values": values.contiguous().cpu()}, partial / FILE)
        except OSError as error:
            LOG.warning("residuals are not kept: %s; see `lensbench cache`", error.strerror or error)
            return False
        return True

    def _make_room(self, size: int) -> None:
        assert self.folder is not None
        kept = sorted((path.stat().st_mtime, path.name, path) for path in self.folder.glob("[!.]*") if path.is_dir())
        sizes = {path: folder_size(path) for _, _, path in kept}
        total = sum(sizes.values())
        for _, _, path in kept:
            if total + size <= self.limit:
                return
            # A process that reads it keeps its mapping.
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _key(model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> str:
    digest = hashlib.sha256()
    parts = (
        version("lensbench"), code_digest(capture), code_digest(LanguageModel), model.fingerprint, model.dtype,
        model.device.type, model.parts.paths, tokens_per_batch(model), tuple(layers),
    )  # fmt: skip
    digest.update(repr(parts).encode())
    for reading in readings:
        digest.update(repr(reading.ids).encode())
    return digest.hexdigest()[:24]
