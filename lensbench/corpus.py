"""Ordinary prose, and the target's residual stream on it: what lenses learn from."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbench.cache import LENSES, atomic_folder, cache_root, code_digest
from lensbench.errors import LensbenchError
from lensbench.learning import Learning
from lensbench.model.language_model import LanguageModel

PROSE = Path(__file__).parent / "assets" / "prose"
WINDOW = 128
WINDOWS_PER_BATCH = 16
COSTS = "costs.json"


@dataclass
class Spent:
    """What learning from a corpus has taken; what was taken from the cache counts as it did when it was learned."""

    seconds: float = 0.0
    tokens: int = 0


class Corpus:
    """The target on prose. Methods get residuals from it, not the model.

    Args:
        model: the target model.
        path: a text file, paragraphs separated by blank lines.
        cache: where fitted lenses are kept; None keeps them nowhere.
    """

    def __init__(self, model: LanguageModel, path: Path = PROSE / "train.txt", cache: Path | None = None) -> None:
        self._model = model
        self.path = path
        self.cache = cache
        self.spent = Spent()

    @cached_property
    def windows(self) -> Int[Tensor, "window token"]:
        """The prose as rows of 128 tokens, spread over the whole file when only a part of it is used."""
        text = self.path.read_text(encoding="utf-8")
        ids = torch.tensor(self._model.tokens.encode(text).ids)
        rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]

    @property
    def digest(self) -> str:
        """A digest of model and text: what a lens learned from this corpus depends on."""
        model = self._model
        text = hashlib.sha256(self.path.read_bytes()).hexdigest()
        parts = (model.fingerprint, model.dtype, model.device.type, model.parts.paths, text, WINDOW)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def residuals(self, tokens: int, *, skip: int = 0) -> Iterator[Float[Tensor, "layer token d_model"]]:
        """Yield the residual stream at all layers, 0 to L, in batches of up to 2,032 positions.

        The first position of each window is left out: it is an attention sink of a hundred times the usual norm.

        Args:
            tokens: how many tokens to run, rounded down to whole windows.
            skip: how many tokens at the beginning to leave for another use.

        Raises:
            LensbenchError: the corpus is shorter than that.
        """
        first, count = -(-skip // WINDOW), tokens // WINDOW
        if first + count > len(self.windows):
            raise LensbenchError(
                f"{skip + tokens} corpus tokens were asked for; {self.path.name} has {self.windows.numel()}: ask for "
                "fewer, or give a longer text"
            )
        layers = range(self._model.n_layers + 1)
        for begin in range(first, first + count, WINDOWS_PER_BATCH):
            ids = self.windows[begin : min(begin + WINDOWS_PER_BATCH, first + count)]
            self.spent.tokens += ids.numel()
            positions = torch.arange(1, WINDOW).expand(len(ids), -1)
            values = self._model.residuals(ids, torch.ones_like(ids), positions, layers)
            yield values.flatten(1, 2)

    def folder_of(self, learner: type, parameters: Mapping[str, object]) -> tuple[Path | None, str]:
        """Return where what a method learns from this corpus is kept, and the settings that name it.

        None where nothing is kept: the model's digest is then not asked for.
        """
        if self.cache is None:
            return None, ""
        method = [learner.__qualname__, code_digest(learner)]
        settings = json.dumps({"method": method, "parameters": parameters, "corpus": self.digest, "form": 2}, sort_keys=True)
        name = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return self.cache / name, settings

    def learn_once(
        self, learner: type, parameters: Mapping[str, object], learn: Callable[[Learning], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what `learn` returns; from the cache, where the method has learned from this corpus before.

        Learning that was cut off is gone on with.
        """
        device = self._model.device
        folder, settings = self.folder_of(learner, parameters)
        begin, before = time.perf_counter(), self.spent.tokens
        if folder is None:
            learned = learn(Learning(None, device))
            self.spent.seconds += time.perf_counter() - begin
            return learned
        if (folder / "lens.safetensors").exists():
            costs = json.loads((folder / COSTS).read_text(encoding="utf-8"))
            self.spent.tokens += costs["tokens"]
        else:
            begun = folder.with_name(f".{folder.name}.begun")
            learned = learn(Learning(begun, device))
            costs = {"seconds": time.perf_counter() - begin, "tokens": self.spent.tokens - before}
            with atomic_folder(folder) as temporary:
                (temporary / "settings.json").write_text(settings, encoding="utf-8")
                (temporary / COSTS).write_text(json.dumps(costs), encoding="utf-8")
                save_file(
                    {key: value.contiguous().cpu() for key, value in learned.items()}, temporary / "lens.safetensors"
                )
            shutil.rmtree(begun, ignore_errors=True)
        self.spent.seconds += costs["seconds"]
        return {key: value.to(device) for key, value in load_file(folder / "lens.safetensors").items()}


def lens_cache() -> Path:
    """Return the folder of fitted lenses."""
    return cache_root() / LENSES
