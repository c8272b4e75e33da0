"""Ordinary prose, and the target's residual stream on it: what lenses learn from."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.jacobians import jacobian, later_jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import TrainingSchedule
from lensbench.models.relevance import relevance_rules
from lensbench.models.tokens import Encoding, PairedText, pair_window, same_tokenizer
from lensbench.utils.cache import LENSES, atomic_folder, cache_root, is_whole, seal
from lensbench.utils.code import code_digest

PROSE = Path(__file__).parents[1] / "assets" / "prose"
WINDOW = 128
WINDOWS_PER_BATCH = 16
# Positions at the beginning of a prompt that a Jacobian lens passes over, near the attention sink.
SKIPPED = 16
COSTS = "costs.json"
# What a method calls the figure, one a layer, of how far two halves of what it learned from agree.
SPLIT_HALF = "split_half"


@dataclass
class Spent:
    """The cost of learning from a corpus; what comes from the cache counts as it did when it was learned.

    Attributes:
        seconds: of learning.
        tokens: of the corpus.
        split_half: by layer, how far two halves of what was last learned agree; empty where the method does not say.
    """

    seconds: float = 0.0
    tokens: int = 0
    split_half: tuple[float, ...] = ()


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
        self._learned: dict[str, tuple[dict[str, Tensor], Spent]] = {}

    @cached_property
    def windows(self) -> Int[Tensor, "window token"]:
        """The prose as rows of 128 tokens, spread over the whole file when only a part of it is used."""
        ids = torch.tensor(self._encoding.ids)
        rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        return rows[_order(len(rows))]

    @cached_property
    def _encoding(self) -> Encoding:
        text, model = self.path.read_text(encoding="utf-8"), self._model
        # Kept with the model: every trial of a run reads the same prose.
        return model.cache.get_or_compute(("prose", text), lambda: model.tokens.encode(text))

    @property
    def digest(self) -> str:
        """A digest of model and text: what a lens learned from this corpus depends on."""
        model = self._model
        text = hashlib.sha256(self.path.read_bytes()).hexdigest()
        where = (model.dtype, model.attention, model.device.type, model.parts.paths)
        parts = (model.fingerprint, *where, text, WINDOW)
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
        for values in self.residuals_in_windows(tokens, skip=skip):
            yield values.flatten(1, 2)

    def residuals_in_windows(
        self, tokens: int, *, skip: int = 0
    ) -> Iterator[Float[Tensor, "layer window position d_model"]]:
        """Yield what `residuals` yields, the positions of a window in their order: for what relates one to another."""
        first, count = -(-skip // WINDOW), tokens // WINDOW
        self._require(first + count, skip + tokens)
        layers = range(self._model.n_layers + 1)
        for begin in range(first, first + count, WINDOWS_PER_BATCH):
            ids = self.windows[begin : min(begin + WINDOWS_PER_BATCH, first + count)]
            self.spent.tokens += ids.numel()
            positions = torch.arange(1, WINDOW).expand(len(ids), -1)
            yield self._model.residuals(ids, torch.ones_like(ids), positions, layers)

    def _require(self, windows: int, tokens: int) -> None:
        if windows > len(self.windows):
            raise LensbenchError(
                f"{tokens} corpus tokens were asked for; {self.path.name} has {self.windows.numel()}: ask for fewer, "
                "or give a longer text"
            )

    def paired(
        self, other: LanguageModel, tokens: int, layers: Sequence[int]
    ) -> Iterator[tuple[Float[Tensor, "layer position d_model"], Float[Tensor, "other_layer position d_other"]]]:
        """Yield the target's residuals at all layers beside another model's at some, of one and the same text.

        With one tokenizer positions pair one to one; with two, tokens that end at the same character are a pair, and
        the others are left out. The first position of either is an attention sink, and left out too.

        Args:
            other: the other model.
            tokens: how many tokens of the target's to run, rounded down to whole windows.
            layers: of the other model.

        Raises:
            LensbenchError: the corpus is shorter than that.
        """
        count = tokens // WINDOW
        self._require(count, tokens)
        texts = self._paired_windows(other, count)
        for begin in range(0, count, WINDOWS_PER_BATCH):
            batch = [text for text in texts[begin : begin + WINDOWS_PER_BATCH] if text.positions]
            if batch:
                self.spent.tokens += sum(len(text.ids) for text in batch)
                if other is not self._model:
                    self.spent.tokens += sum(len(text.other_ids) for text in batch)
                yield paired_residuals(self._model, other, batch, layers)

    def _paired_windows(self, other: LanguageModel, count: int) -> list[PairedText]:
        """Return the first windows, as the other model sees them too."""
        if same_tokenizer(self._model.tokens, other.tokens):
            every = tuple((i, i) for i in range(1, WINDOW))
            return [PairedText(tuple(ids), tuple(ids), every) for ids in self.windows[:count].tolist()]
        encoding = self._encoding
        rows = _order(len(self.windows))[:count].tolist()
        return [pair_window(encoding, range(row * WINDOW, (row + 1) * WINDOW), other.tokens) for row in rows]

    def positions(
        self, tokens: int, back: int
    ) -> Iterator[tuple[Float[Tensor, "layer token d_model"], Int[Tensor, "token back"]]]:
        """Yield what `residuals` yields, beside the token at each position and those before it, that one first.

        Positions that have not so many tokens before them in their window are left out.

        Args:
            tokens: how many tokens to run, rounded down to whole windows.
            back: how many tokens to give, 1 for the position's own alone.
        """
        # The second token of a window is the first that is read.
        first = max(1, back - 1)
        batches = self.windows[: tokens // WINDOW].split(WINDOWS_PER_BATCH)
        for ids, values in zip(batches, self.residuals_in_windows(tokens), strict=False):
            read = ids.unfold(1, back, 1)[:, first - back + 1 :].flip(2)
            yield values[:, :, first - 1 :].flatten(1, 2), read.flatten(0, 1)

    def contexts(self, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
        """Return beginnings of windows that end at positions drawn from all those that `residuals` yields.

        Args:
            count: how many; a larger count begins with the same ones.
            seed: which positions are drawn.

        Raises:
            LensbenchError: the corpus has fewer positions.
        """
        places = len(self.windows) * (WINDOW - 1)
        if count > places:
            raise LensbenchError(
                f"{count} corpus positions were asked for; {self.path.name} has {places}: ask for fewer, or give a "
                "longer text"
            )
        drawn = torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:count].tolist()
        ends = [divmod(place, WINDOW - 1) for place in drawn]
        return tuple(tuple(self.windows[window, : position + 2].tolist()) for window, position in ends)

    def prompts(self, count: int, seed: int) -> Int[Tensor, "prompt token"]:
        """Return windows drawn from all; each begins with BOS where the tokenizer begins texts so.

        Raises:
            LensbenchError: the corpus has fewer windows.
        """
        self._require(count, count * WINDOW)
        drawn = torch.randperm(len(self.windows), generator=torch.Generator().manual_seed(seed))[:count]
        rows, first = self.windows[drawn], self._encoding.ids[:1]
        if self._model.tokens.special_ids.isdisjoint(first):
            return rows
        return torch.cat([torch.tensor(first).expand(count, 1), rows[:, :-1]], dim=1)

    def jacobian(
        self, context: tuple[int, ...], rows: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, "layer row d_model"]:
        """Return rows of the target's Jacobian at the end of a context: at one position, of layers 0 to L - 1."""
        self.spent.tokens += len(context)
        return jacobian(self._model, context, len(context) - 1, rows=rows).weight[:-1].float()

    def later_jacobian(
        self, prompt: Int[Tensor, " token"], rows: Int[Tensor, " row"], target_layer: int, *, relevance: bool = False
    ) -> Float[Tensor, "layer row d_model"]:
        """Return rows of the Jacobian of a layer's residuals at the positions from 16 to the last but one of a prompt.

        As `models.jacobians.later_jacobian` defines it: of this and later positions, mean over positions. The first
        16 are near the attention sink. With `relevance`, under the rules of `models.relevance`.
        """
        self.spent.tokens += len(prompt)
        places = torch.arange(SKIPPED, len(prompt) - 1)
        with relevance_rules(self._model) if relevance else nullcontext():
            return later_jacobian(self._model, tuple(prompt.tolist()), places, rows, target_layer).float()

    def folder_of(self, learner: type, parameters: Mapping[str, object]) -> tuple[Path | None, str]:
        """Return where what a method learns from this corpus is kept, and the settings that name it.

        None where nothing is kept: the model's digest is then not asked for.
        """
        if self.cache is None:
            return None, ""
        method = [learner.__qualname__, code_digest(learner)]
        settings = json.dumps(
            {"method": method, "parameters": parameters, "corpus": self.digest, "form": 2}, sort_keys=True
        )
        name = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return self.cache / name, settings

    def learn_once(
        self, learner: type, parameters: Mapping[str, object], learn: Callable[[TrainingSchedule], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what `learn` returns; from the cache, where the method has learned from this corpus before.

        Interrupted learning is resumed. Results stay in memory and are shared by all callers, who must not change them.
        """
        key = json.dumps([learner.__module__, learner.__qualname__, parameters], sort_keys=True, default=str)
        if key in self._learned:
            learned, took = self._learned[key]
            self.spent.seconds += took.seconds
            self.spent.tokens += took.tokens
        else:
            before = replace(self.spent)
            learned = self._learn_or_load(learner, parameters, learn)
            took = Spent(self.spent.seconds - before.seconds, self.spent.tokens - before.tokens)
            self._learned[key] = (learned, took)
        self.spent.split_half = tuple(round(float(one), 4) for one in learned.get(SPLIT_HALF, ()))
        return dict(learned)

    def _learn_or_load(
        self, learner: type, parameters: Mapping[str, object], learn: Callable[[TrainingSchedule], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        device = self._model.device
        folder, settings = self.folder_of(learner, parameters)
        begin, before = time.perf_counter(), self.spent.tokens
        if folder is None:
            learned = learn(TrainingSchedule(None, device))
            self.spent.seconds += time.perf_counter() - begin
            return learned
        if is_whole(folder):
            costs = json.loads((folder / COSTS).read_text(encoding="utf-8"))
            self.spent.tokens += costs["tokens"]
        else:
            unfinished = folder.with_name(f".{folder.name}.begun")
            learned = learn(TrainingSchedule(unfinished, device))
            costs = {"seconds": time.perf_counter() - begin, "tokens": self.spent.tokens - before}
            with atomic_folder(folder) as temporary:
                (temporary / "settings.json").write_text(settings, encoding="utf-8")
                (temporary / COSTS).write_text(json.dumps(costs), encoding="utf-8")
                tensors = {key: value.contiguous().cpu() for key, value in learned.items()}
                save_file(tensors, temporary / "lens.safetensors")
                seal(temporary, folder.name)
            shutil.rmtree(unfinished, ignore_errors=True)
        self.spent.seconds += costs["seconds"]
        return {key: value.to(device) for key, value in load_file(folder / "lens.safetensors").items()}


def _order(rows: int) -> Int[Tensor, " row"]:
    """Return which stretch of the file each window is."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))


def lens_cache() -> Path:
    """Return the folder of fitted lenses."""
    return cache_root() / LENSES


def residuals_at(
    model: LanguageModel, texts: Sequence[tuple[int, ...]], positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[Tensor, "layer position d_model"]:
    """Read some positions of each text, text after text."""
    ids, mask = model.tokens.pad(texts)
    # Rows with fewer positions are filled with position 0, which is dropped again.
    sites = torch.zeros(len(texts), max(map(len, positions)), dtype=torch.long)
    for row, own in enumerate(positions):
        sites[row, : len(own)] = torch.tensor(own)
    wanted = (sites > 0).to(model.device)
    return model.residuals(ids, mask, sites, layers)[:, wanted]


def paired_residuals(
    model: LanguageModel, other: LanguageModel, texts: Sequence[PairedText], layers: Sequence[int]
) -> tuple[Float[Tensor, "layer position d_model"], Float[Tensor, "other_layer position d_other"]]:
    """Read the positions that two models share: of the one at all layers, of the other at some."""
    own, theirs = ([[pair[side] for pair in text.positions] for text in texts] for side in (0, 1))
    every = range(model.n_layers + 1)
    values = residuals_at(model, [text.ids for text in texts], own, every)
    if other is model:
        return values, values[list(layers)]
    others = residuals_at(other, [text.other_ids for text in texts], theirs, sorted(set(layers)))
    return values, others[[sorted(set(layers)).index(layer) for layer in layers]].to(values.device)
