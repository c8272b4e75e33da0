"""Training a small natural-language autoencoder without any other model's texts: what `lensbench fit nla` does."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from lensbench.errors import LensbenchError, UsageError
from lensbench.inspectors.verbalizers.nla import HEAD, Reconstructor, reconstruction_errors, variance
from lensbench.inspectors.verbalizers.nla_meta import NLAMeta
from lensbench.inspectors.verbalizers.recipe import NOTES
from lensbench.models.adapters import FreshAdapter, require_peft
from lensbench.models.corpus import PROSE, Corpus, Spent
from lensbench.models.gradients import Lesson, answer_losses, last_layer
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.models.patching.passes import make_prompt
from lensbench.models.sources import write_table
from lensbench.training.settings import TrainingSettings, check_settings
from lensbench.utils.cache import atomic_folder

LOG = logging.getLogger("lensbench")
# Positions below are no good start; what comes after is told for so many tokens at least and at most.
FIRST, LEAST, MOST = 48, 8, 16
# So many activations of each window of prose; so many held-out ones that figures are of.
OF_WINDOW, CHECKED = 8, 64
AV_TEXT = "Some text is written in the mark <concept>{injection_char}</concept>. Say what comes before it and after it."
AR_TEXT = "Summary of the following text: <text>{explanation}</text> <summary>"
# Characters that prose has not, some of which are a token in most large vocabularies; else an added token is taken.
MARKS = tuple(map(chr, range(0x3200, 0x3400)))


class NLATraining(TrainingSettings):
    """The settings of an autoencoder's training, with their defaults.

    Attributes:
        block: K: the output of this block is read, counted from 0; by default at two thirds of the depth.
        pairs: activations of prose that are learned from.
        rank: of the adapters of both halves, which are merged in the end.
        learning_rate: after a short warm-up; it falls to zero by the end.
        scale: the length of a vector in place of an embedding; by default the mean length of the activations.
        mark: the character whose embedding that is, one token of the model; by default one that prose has not.
    """

    block: int | None = Field(None, ge=0)
    pairs: int = Field(1024, ge=2)
    steps: int = Field(100, ge=1)
    batch: int = Field(8, ge=1)
    rank: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    mark: str | None = None


def make_settings(given: Mapping[str, Any]) -> NLATraining:
    """Check the settings of a training before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, or PEFT is not installed.
    """
    settings = check_settings(NLATraining, given, "nla", "nla: {name} = {value}")
    require_peft()
    return settings


@dataclass(frozen=True)
class Pairs:
    """Activations of prose, and the words around each: what comes before it, and what comes next."""

    values: Float[Tensor, "pair d_model"]
    texts: tuple[str, ...]
    tokens: int


def draw_pairs(model: LanguageModel, corpus: Corpus, layer: int, count: int, seed: int) -> Pairs:
    """Read activations of prose, and write down the 8 to 16 tokens up to each and after it."""
    rng, values, texts = random.Random(seed), [], []
    windows = corpus.windows[: -(-count // OF_WINDOW)]
    for window in windows:
        ids = window.tolist()
        places = sorted(rng.sample(range(FIRST, len(ids) - MOST), OF_WINDOW))
        row = window[None]
        values.append(model.residuals(row, torch.ones_like(row), torch.tensor([places]), (layer,))[0, 0])
        for place in places:
            before, after = (rng.randint(LEAST, MOST) for _ in range(2))
            told = (ids[place + 1 - before : place + 1], ids[place + 1 : place + 1 + after])
            texts.append(" / ".join(" ".join(model.tokens.decode(part).split()) for part in told))
    return Pairs(torch.cat(values)[:count].float(), tuple(texts[:count]), windows.numel())


def sidecars(model: LanguageModel, settings: NLATraining, block: int, scale: float) -> tuple[NLAMeta, NLAMeta]:
    """Return what is written beside both halves.

    Raises:
        UsageError: the model has no chat template, or no token of its own for a mark.
    """
    unused = sorted(set(model.tokens.tokenizer.get_added_vocab()) - set(model.tokens.tokenizer.all_special_tokens))
    for mark in (*MARKS, *unused) if settings.mark is None else (settings.mark,):
        av = NLAMeta("av", model.d_model, block, AV_TEXT, scale, mark)
        try:
            prompt = make_prompt(model, av.conversation, mark)
        except LensbenchError:
            continue
        token, left, right = (prompt.ids[prompt.position + shift] for shift in (0, -1, 1))
        # Some characters are several tokens, each of which covers it.
        whole = model.tokens.tokenizer.encode(mark, add_special_tokens=False) == [token]
        if whole and prompt.ids.count(token) == 1:
            ends = model.tokens.encode(AR_TEXT.replace("{explanation}", "x")).ids[-2:]
            av = NLAMeta("av", model.d_model, block, AV_TEXT, scale, mark, (token, left, right))
            return av, NLAMeta("ar", model.d_model, block, AR_TEXT, suffix=ends)
    raise UsageError(
        f"nla: {model.name} has no chat template, or no token of its own for a mark; give a word of one token that the "
        "prompt has not, --set mark=WORD"
    )


def first_blocks(model: LanguageModel, count: int) -> LanguageModel:
    """Return a copy of a model that ends after its first blocks."""
    module: Any = deepcopy(model.module)
    path, _, name = model.parts.paths.blocks.rpartition(".")
    setattr(module.get_submodule(path), name, nn.ModuleList(list(module.get_submodule(f"{path}.{name}"))[:count]))
    config = module.config.get_text_config()
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:count]
    return model.with_module(module, f"{model.name}, {count} blocks")


class Halves:
    """Both halves in training.

    Args:
        model: the base; it stays as it is.
        settings: what to learn.
        pairs: what to learn from.
        metas: their sidecars.
    """

    def __init__(
        self, model: LanguageModel, settings: NLATraining, pairs: Pairs, metas: tuple[NLAMeta, NLAMeta]
    ) -> None:
        self.settings, self.pairs, self.metas = settings, pairs, metas
        self.av = FreshAdapter(model, settings.rank, settings.seed)
        self.ar = FreshAdapter(first_blocks(model, metas[1].layer), settings.rank, settings.seed + 1)
        self.head = torch.eye(model.d_model, device=model.device).requires_grad_()
        self.prompt = metas[0].prompt(model)
        self.tokens = 0

    def drawn(self, step: int, half: str) -> list[int]:
        """Return the pairs of a step."""
        count = len(self.pairs.texts)
        return random.Random(f"{self.settings.seed}/{half}/{step}").choices(range(count), k=self.settings.batch)

    def av_losses(self, step: int) -> Float[Tensor, " pair"]:
        """Return the verbalizer's cross-entropy on the words around some activations."""
        return self.told_losses(self.pairs, self.drawn(step, "av"))

    def told_losses(self, pairs: Pairs, places: Sequence[int]) -> Float[Tensor, " pair"]:
        """Return the verbalizer's cross-entropy on some pairs: the tagged text, and the end of the turn."""
        (av, _), tokens, lessons = self.metas, self.av.model.tokens, []
        for i in places:
            said = tokens.answer_ids(f"<explanation>\n{pairs.texts[i]}\n</explanation>", av.conversation)
            vector = normalize(pairs.values[i : i + 1], dim=1) * float(av.scale or 0)
            lessons.append(Lesson(self.prompt, (*said, tokens.turn_end), vector))
        self.tokens += sum(len(one.prompt.ids) + len(one.answer) for one in lessons)
        return answer_losses(self.av.model, lessons, 0)

    def ar_losses(self, step: int) -> Float[Tensor, " pair"]:
        """Return the reconstructor's 2 (1 - cos) on the words around some activations."""
        places, model = self.drawn(step, "ar"), self.ar.model
        rows = [model.tokens.encode(AR_TEXT.replace("{explanation}", self.pairs.texts[i])).ids for i in places]
        ids, mask = model.tokens.pad(rows)
        self.tokens += int(mask.sum())
        hidden = last_layer(model, ids, mask)[torch.arange(len(rows)), mask.sum(1) - 1]
        return 2 - 2 * cosine_similarity(hidden.float() @ self.head.T, self.pairs.values[places], dim=1)

    def say_costs(self) -> None:
        """Log how many tokens and minutes the training will take, by a step of each half."""
        start, self.tokens = time.perf_counter(), 0
        with torch.enable_grad():
            (self.av_losses(0).mean() + self.ar_losses(0).mean()).backward()
        minutes = (time.perf_counter() - start) * self.settings.steps / 60
        LOG.info("%s tokens, about %.0f minutes", f"{self.tokens * self.settings.steps:,}", minutes)
        self.tokens = 0

    @torch.no_grad()
    def figures(self, held_out: Pairs) -> dict[str, float]:
        """Return what both halves make of prose that they have not met; the reconstructor of the true words."""
        places, batch = range(len(held_out.texts)), self.settings.batch
        parts = [self.told_losses(held_out, places[i : i + batch]) for i in places[::batch]]
        rebuild = Reconstructor(self.ar.model, self.head, self.metas[1])
        errors = reconstruction_errors(rebuild, held_out.values, held_out.texts)
        base = variance(held_out.values)
        found = {name.replace("mse", "fve_true_words"): 1 - float(one.mean()) / base for name, one in errors.items()}
        return {name: round(one, 4) for name, one in {"held_out_loss": float(torch.cat(parts).mean()), **found}.items()}


def train(model: LanguageModel, corpus: Corpus, settings: NLATraining, out: Path) -> Spent:
    """Train a verbalizer and a reconstructor of one model, and write both into a new folder, as `av` and `ar`.

    An interrupted training is resumed where model, settings and folder are the same.

    Args:
        model: the base; it stays as it is.
        corpus: prose of the model.
        settings: what to learn, and how long.
        out: the folder to write.

    Raises:
        UsageError: a block that the model does not have, or no chat template or mark.
    """
    start = time.perf_counter()
    block = 2 * model.n_layers // 3 if settings.block is None else settings.block
    if block >= model.n_layers:
        raise UsageError(f"nla: block = {block}; {model.name} has blocks 0 to {model.n_layers - 1}")
    sidecars(model, settings, block, 1.0)  # refused before anything is read
    pairs = draw_pairs(model, corpus, block + 1, settings.pairs, settings.seed)
    scale = settings.scale or float(pairs.values.norm(dim=1).mean())
    halves = Halves(model, settings, pairs, sidecars(model, settings, block, scale))
    halves.say_costs()
    every: list[tuple[str, Mapping[str, Tensor], Callable[[int], Tensor]]] = [
        ("av", halves.av.weights, halves.av_losses),
        ("ar", {**halves.ar.weights, "head": halves.head}, halves.ar_losses),
    ]
    with checkpoint_folder(out, settings.digest(model.fingerprint)) as unfinished:
        for half, weights, losses in every:
            learner = Descent(weights, settings.learning_rate, settings.steps)
            found = learner.descend(TrainingSchedule(unfinished / half, model.device), losses)
            LOG.info("%s: loss %.3f at first, %.3f at last", half, found["loss_first"], found["loss_last"])
        held_out = draw_pairs(model, Corpus(model, PROSE / "heldout.txt"), block + 1, CHECKED, settings.seed)
        figures = halves.figures(held_out)
        LOG.info("on held-out prose: %s", ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        with atomic_folder(out) as folder:
            for trained, meta in zip((halves.av, halves.ar), halves.metas, strict=True):
                trained.save_merged(folder / meta.half)
                meta.write(folder / meta.half)
            save_file({"weight": halves.head.detach().cpu().contiguous()}, folder / "ar" / HEAD)
            write_table(folder / NOTES, settings.record(model.name, f"prose, layer {block + 1}", figures, "peft"))
    return Spent(time.perf_counter() - start, pairs.tokens + halves.tokens)
