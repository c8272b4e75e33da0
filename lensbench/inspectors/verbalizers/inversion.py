"""Inversion."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt, by_layer
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import ENDING, read_notes
from lensbench.models.chat import Text
from lensbench.models.corpus import WINDOW, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.prompting import continue_line, score_answers
from lensbench.models.ridge import RunningMoments, every_pair

SLOT = "{subject}"
# How many tokens the default attempt keeps.
DEFAULT_KEPT = 2
# Without any penalty, coordinates that say the same would have no one solution.
LEAST_PENALTY = 1e-9


def without_answers(text: str, answers: Sequence[str]) -> str:
    """Return a text without the answers that stand in it, in any case, the longest first."""
    said = "|".join(re.escape(answer) for answer in sorted(answers, key=len, reverse=True))
    return " ".join(re.sub(rf"(?<!\w)(?:{said})(?!\w)", " ", text, flags=re.IGNORECASE).split())


class Inversion(Inspector):
    """Decode the input text from the residual, and let the verbalizer answer from the text.

    After Li et al. 2025, arXiv 2509.13316, section 4, who train a decoder of whole prompts: whatever can be answered
    so is no knowledge of the target's, only of its input. Ours is the simplest that recovers a name. For the token read
    (o = 0) and each of the k - 1 before it, a linear map a layer,

        ŷ_o = W_o (h_l - m_l) / s_l + b_o,   w_o = argmax over tokens w of cos(ŷ_o, e_w),

    where e_w are the model's input embeddings, m and s mean and standard deviation of each coordinate, and W, b the
    ridge regression of e_w(t - o) on the standardised h_l(t) over a corpus. The tokens w_n-1 ... w_0 as text, in the
    slot of the inspection prompt, are what the verbalizer is asked about. Attempt `tokens=n` keeps n of them: nothing
    in the residual says where a name begins, so each length is an attempt.

    With `decoder`, an oracle that was trained on prose to write the text that ends with what it reads (`lensbench fit
    oracle --set inverts=true --set prose=1`) writes it down instead, at the layers that it was trained on.

    A text that says the answer would be no input text: the first tokens of the relation's answers are never decoded,
    and a decoder's texts lose every answer that stands in them.

    W is held and kept on disk in half precision: 2 bytes x layers x k x width², 82 MB for 31 layers of width 576 and
    k = 4; the regression takes three to four times that while it is solved.

    Args:
        offsets: k, how many tokens are decoded.
        tokens: corpus tokens for the regression.
        ridge: penalty, relative to the variance of each coordinate.
        prompt: for all items, with the slot `{subject}`; None takes each relation's own inspection prompt.
        vocabulary: ids of the tokens that the linear maps choose from; None takes all that have a text.
        decoder: the folder of the oracle that writes the text, in place of the linear maps.
    """

    name: ClassVar[str] = "inversion"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "corpus"
    tries: ClassVar[str] = "one a number of tokens kept"
    cost: ClassVar[str] = "a pass over the corpus, once a model; then the embeddings, and a text an item and attempt"
    generates: ClassVar[bool] = True

    def __init__(
        self,
        offsets: int = 4,
        tokens: int = 8192,
        ridge: float = 0.001,
        prompt: Text | None = None,
        vocabulary: tuple[int, ...] | None = None,
        decoder: str | None = None,
    ) -> None:
        self.offsets = offsets
        self.tokens = tokens
        self.ridge = ridge
        self.prompt = prompt
        self.vocabulary = vocabulary
        self.decoder = decoder

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse settings that cannot be.

        Raises:
            UsageError: no offsets or more than a window has, no tokens, a negative penalty, a prompt without its slot,
                or an empty vocabulary.
        """
        if not isinstance(self.offsets, int) or not 1 <= self.offsets <= WINDOW // 2:
            raise UsageError(f"inversion.offsets = {self.offsets!r}: expected a number of tokens, 1 to {WINDOW // 2}")
        if not isinstance(self.tokens, int) or self.tokens < WINDOW:
            raise UsageError(f"inversion.tokens = {self.tokens!r}: expected at least {WINDOW}, the length of a window")
        if not isinstance(self.ridge, int | float) or not 0 <= self.ridge < float("inf"):
            raise UsageError(f"inversion.ridge = {self.ridge!r}: expected 0 or more")
        if self.prompt is not None and SLOT not in self.prompt:
            raise UsageError(f"inversion.prompt = {self.prompt!r}: expected a text with the slot {SLOT}")
        if self.vocabulary is not None and not self.vocabulary:
            raise UsageError("inversion.vocabulary = (): expected ids of tokens; leave it out to take all")
        if self.decoder is not None:
            decoder = Oracle(self.decoder)
            decoder.check(target, verbalizer)
            notes = read_notes(decoder.folder)
            settings = notes.more.get("settings", {}) if notes else {}
            if not settings.get("inverts") or settings.get("prose") != 1:
                raise UsageError(
                    f"inversion.decoder {self.decoder} was not trained to write texts, and nothing else; `lensbench "
                    "fit oracle --set inverts=true --set prose=1 --out FOLDER` trains one"
                )

    def files(self) -> tuple[Path, ...]:
        """Return the files of the decoder."""
        return Oracle(self.decoder).files() if self.decoder else ()

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Inversion":
        """Learn the maps of layers 0 to L, or take them from the cache; or load the decoder."""
        self.target_ = target
        self.verbalizer_ = verbalizer
        self.decoder_ = Oracle(self.decoder).fit(target, verbalizer, training) if self.decoder else None
        if self.decoder_ is not None:
            return self
        corpus = training.corpus
        # Neither prompt nor vocabulary changes what is learned: rivals with others share it.
        settings = {"offsets": self.offsets, "tokens": self.tokens, "ridge": self.ridge}
        learned = corpus.learn_once(
            type(self), settings, lambda learning: learning.stage("ridge", lambda: self._learn(target, corpus))
        )
        self.mean_: Float[Tensor, "layer d_model"] = learned["mean"]
        self.scale_: Float[Tensor, "layer d_model"] = learned["scale"]
        self.weight_: Float[Tensor, "layer offset d_model d_embed"] = learned["weight"]
        self.bias_: Float[Tensor, "offset d_embed"] = learned["bias"]
        return self

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the prompt in whose slot the decoded text is put."""
        return OwnPrompt(self.prompt or question, "x")

    def decode(
        self, layer: int, values: Float[Tensor, "item d_model"], without: Sequence[int] = ()
    ) -> Int[Tensor, "item offset"]:
        """Return the tokens that one layer's residuals decode to: the one read, the one before it, and so on.

        Args:
            layer: 0 to L.
            values: its residuals.
            without: tokens that are not to be decoded.

        Raises:
            UsageError: no token is left to choose from.
        """
        standard = (values.float() - self.mean_[layer]) / self.scale_[layer]
        decoded = torch.stack([standard @ weight.float() for weight in self.weight_[layer]], dim=1) + self.bias_
        found = self.target_.nearest(decoded.flatten(0, 1), among=self.vocabulary, without=without)
        return found.reshape(len(values), self.offsets)

    def inspect(self, evidence: Evidence) -> Scores:
        """Decode every layer's residual of every item, and ask the verbalizer about each text.

        Where a description is asked for, the verbalizer goes on from there.
        """
        form = self.own_prompt(evidence.question).text
        default = min(DEFAULT_KEPT, self.offsets)
        kept = (default, *(n for n in range(1, self.offsets + 1) if n != default))
        texts = [form.replace(SLOT, name) for name in self._names(evidence, kept)]
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        place = [number[text] for text in texts]
        distinct = list(number)
        asked = score_answers(self.verbalizer_, distinct, evidence.answers)
        found = by_layer(asked.rows(torch.tensor(place)), len(evidence.layers), tuple(f"tokens={n}" for n in kept))
        if evidence.whole_answers:
            whole = score_answers(self.verbalizer_, distinct, evidence.answers, whole=True).log_probs
            found = replace(found, whole=whole[place].reshape(found.log_scores.shape))
        if not evidence.describe:
            return found
        said = np.array(continue_line(self.verbalizer_, distinct, evidence.describe), dtype=object)
        return replace(found, texts=said[place].reshape(found.log_scores.shape[:3]))

    def _names(self, evidence: Evidence, kept: Sequence[int]) -> Iterator[str]:
        """Yield the decoded texts, by layer, then by how many tokens are kept, then by item."""
        without = self.target_.first_tokens(evidence.answers)
        for layer, values in zip(evidence.layers, evidence.residuals.values, strict=True):
            if self.decoder_ is not None:
                for n in kept:
                    texts = self._written(self.decoder_, layer, values, n)
                    yield from (without_answers(text, evidence.answers) for text in texts)
                continue
            decoded = self.decode(layer, values, without).tolist()
            for n in kept:
                yield from (self.target_.spell(ids[n - 1 :: -1]) for ids in decoded)

    def _written(
        self, decoder: Oracle, layer: int, values: Float[Tensor, "item d_model"], count: int
    ) -> tuple[str, ...]:
        """Return the text that the decoder writes of each activation, so many tokens long.

        Raises:
            NotApplicableError: it was not trained to read this layer.
        """
        recipe, model = decoder.recipe_, decoder.verbalizer_
        if layer and layer not in recipe.layers:
            every = ",".join(map(str, recipe.layers))
            raise NotApplicableError(
                f"the decoder was trained to read layers {every}, not {layer}: give --layers {every}"
            )
        prompt = recipe.make(model, ENDING.replace("{k}", str(count)), (layer,))
        return patcher_of(model).generate(prompt, values, torch.full((len(values),), recipe.layer), count)

    def _learn(self, target: Target, corpus: Corpus) -> dict[str, Tensor]:
        moments = RunningMoments(
            every_pair(target.n_layers + 1, self.offsets),
            target.d_model,
            target.embed(torch.zeros(1, dtype=torch.long)).shape[1],
            target.device,
            dtype=torch.float32,
        )
        for values, ids in corpus.positions(self.tokens, self.offsets):
            moments.add(values, torch.stack([target.embed(column) for column in ids.T]))
        solved = [
            (one.mean_x.float(), one.scale.float(), one.weight.transpose(0, 1).half(), one.mean_y.float())
            for one in moments.solutions(max(self.ridge, LEAST_PENALTY))
        ]
        mean, scale, weight, (bias, *_) = zip(*solved, strict=True)
        return {"mean": torch.stack(mean), "scale": torch.stack(scale), "weight": torch.stack(weight), "bias": bias}
