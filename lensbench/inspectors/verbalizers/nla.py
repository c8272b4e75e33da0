"""Natural-language autoencoder: an activation put into words, and the words scored by what can be rebuilt from them."""

import random
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt, Part, by_layer
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.nla_meta import SIDECAR, Half, NLAMeta, read_meta
from lensbench.inspectors.verbalizers.recipe import PHRASE, require_trained
from lensbench.models.activations import Reading, capture
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.models.patching.passes import Prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.prompting import score_answers
from lensbench.tasks.facts import SLOT
from lensbench.utils.foreign import reading

HEAD = "value_head.safetensors"
# What a reconstructor is given that every activation has in common.
CONSTANT = ""
_EXPLANATION = re.compile(r"<explanation>(.*?)(?:</explanation>|$)", re.DOTALL)


def explanation_of(said: str) -> str:
    """Return what a verbalizer has put between its tags; where they are missing, all that it has said."""
    found = _EXPLANATION.search(said)
    return (found[1] if found else said).strip()


class Reconstructor:
    """The half that turns an explanation into an activation: the first K + 1 blocks of a model, and a matrix.

    Args:
        model: its last layer, before any norm, is read at the last token of a text.
        head: the matrix.
        meta: its sidecar.

    Raises:
        UsageError: a matrix of another width, or a text that ends in other tokens than in training.
    """

    def __init__(self, model: LanguageModel, head: Float[Tensor, "d_model d_model"], meta: NLAMeta) -> None:
        self._model, self._head, self._meta = model, head, meta
        if tuple(head.shape) != (model.d_model, model.d_model):
            raise UsageError(f"{HEAD} holds a matrix {tuple(head.shape)}; {model.name} has width {model.d_model}")
        ends = self._ids("x")[-len(meta.suffix) :]
        if meta.suffix and ends != meta.suffix:
            raise UsageError(f"{SIDECAR}: texts end in the tokens {meta.suffix}, those of {model.name} in {ends}")

    def _ids(self, explanation: str) -> tuple[int, ...]:
        return self._model.tokens.encode(self._meta.template.replace("{explanation}", explanation)).ids

    def __call__(self, explanations: Sequence[str]) -> Float[Tensor, "text d_model"]:
        """Return the activation that each explanation stands for, in float32; its length means nothing."""
        readings = [Reading(self._ids(text)) for text in explanations]
        (last,) = capture(self._model, readings, (self._model.n_layers,)).values
        rebuilt: Tensor = last.float() @ self._head.to(last.device).float().T
        return rebuilt


class NLA(Inspector):
    """A verbalizer that was trained to explain an activation, scored by a reader of text, and by reconstruction.

    Natural-language autoencoders: a verbalizer (AV) gets the activation v, at the length s of its sidecar, in place of
    one embedding of its prompt, s v / |v|, and writes an explanation. The plain verbalizer of the run, which sees no
    activation, reads it before the relation's question and answers: what is scored is what the text says. A
    reconstructor (AR) rebuilds the activation from the explanation, w. Of each item: `mse` = 2 (1 - cos(v, w)), the
    squared error of both at length √d_model, and the same for another item's explanation (`mse_shuffled`) and for
    an empty one (`mse_constant`), and of each `fve` = 1 - mse / base, whose mean over the items is the fraction of
    variance explained. The base is the raw variance of the activations of these items at length √d_model, not the
    larger error of their normalised mean.

    Reconstruction is no proof that a claim is true: two models may agree on a code.

    Args:
        av: folder of the verbalizer: a model, and its `nla_meta.yaml`.
        ar: folder of the reconstructor: the same, and `value_head.safetensors`; without it nothing is reconstructed.
        steps: how many tokens an explanation may have.
        prompt: what the reader gets, with the slots `{explanation}` and `{question}`.
        any_layer: also explain layers that it was not trained on.
    """

    name: ClassVar[str] = "nla"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    cost: ClassVar[str] = "a text of up to 100 tokens an item and layer, in a model of its own; trained before"
    generates: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    _without: Part | None = None

    def __init__(
        self,
        av: str | None = None,
        ar: str | None = None,
        steps: int = 100,
        prompt: str = "Text: {explanation}\n{question}",
        any_layer: bool = False,
    ) -> None:
        self.av = av
        self.ar = ar
        self.steps = steps
        self.prompt = prompt
        self.any_layer = any_layer

    @property
    def _folders(self) -> tuple[Path, ...]:
        if self.av is None:
            raise UsageError(
                f"{self.name}.av is missing: give the folder of a verbalizer, and with {self.name}.ar that of its "
                "reconstructor"
            )
        return tuple(Path(given).expanduser() for given in (self.av, self.ar) if given is not None)

    def metas(self) -> list[NLAMeta]:
        """Read the sidecars of both halves, or of the verbalizer alone.

        Raises:
            UsageError: no verbalizer was given, or a sidecar says something else.
        """
        halves: tuple[Half, Half] = ("av", "ar")
        return [read_meta(folder, half) for folder, half in zip(self._folders, halves, strict=False)]

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check both sidecars against the target and each other; tokens are checked when the models are loaded.

        Raises:
            UsageError: what does not fit, and what to choose instead.
        """
        if not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"{self.name}.steps = {self.steps!r}: expected 1 or more")
        if "{explanation}" not in self.prompt or "{question}" not in self.prompt:
            raise UsageError(
                f"{self.name}.prompt = {self.prompt!r}: expected the slots {{explanation}} and {{question}}"
            )
        for folder, meta in zip(self._folders, self.metas(), strict=True):
            if meta.d_model != target.d_model or meta.layer > target.n_layers:
                raise UsageError(
                    f"{folder} explains layer {meta.layer} of models of width {meta.d_model}; {target.name} has width "
                    f"{target.d_model} and {target.n_layers} layers: give the autoencoder of this model"
                )
            if meta.half == "ar" and not (folder / HEAD).is_file():
                raise UsageError(f"{folder} holds no {HEAD}; get the reconstructor again")
        if len({meta.block for meta in self.metas()}) > 1:
            raise UsageError(f"{self.name}: {self.av} and {self.ar} are of different layers; give two of one pair")

    def files(self) -> tuple[Path, ...]:
        """Return the files of both folders."""
        kinds = ("*.safetensors", "*.json", SIDECAR)
        return tuple(file for folder in self._folders for kind in kinds for file in sorted(folder.glob(kind)))

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return what the reader gets, the explanation's place open."""
        text = self.prompt.replace("{question}", question.replace(SLOT, PHRASE)).replace("{explanation}", SLOT)
        return OwnPrompt(text, PHRASE)

    def without(self, part: Part) -> "NLA | None":
        """Return the plain verbalizer with the trained one's prompt and vectors; no constant was learned."""
        if part == "activation":
            return None
        plain = copy(self)
        plain._without = part
        return plain

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "NLA":
        """Load both models, as precise as the verbalizer and where it is.

        Raises:
            UsageError: the slot has other tokens than in training, or the reconstructor's texts other ends.
            NotApplicableError: the plain verbalizer is asked for, and is of another kind.
        """
        how = Loading(str(verbalizer.device), str(verbalizer.dtype).removeprefix("torch."))

        def load(folder: Path) -> LanguageModel:
            made = verbalizer.cache.get_or_compute(("nla", str(folder)), lambda: load_model(str(folder), how))
            assert isinstance(made, LanguageModel)
            return made

        own, *rebuilding = self.metas()
        self.verbalizer_, self.meta_ = verbalizer, own
        self.av_ = verbalizer if self._without else load(self._folders[0])
        self.prompt_ = self._prompt(own)
        self.ar_: Reconstructor | None = None
        for meta in rebuilding:
            with reading(self._folders[1] / HEAD, "get the reconstructor again", UsageError):
                head = next(iter(load_file(self._folders[1] / HEAD).values()))
            self.ar_ = Reconstructor(load(self._folders[1]), head, meta)
        return self

    def _prompt(self, meta: NLAMeta) -> Prompt:
        if not self._without:
            return meta.prompt(self.av_)
        try:
            prompt = meta.prompt(self.av_)
        except UsageError as error:
            raise NotApplicableError(f"the plain verbalizer cannot be asked so: {error}") from None
        if self.av_.d_model != meta.d_model:
            raise NotApplicableError(f"the plain verbalizer has width {self.av_.d_model}, activations {meta.d_model}")
        return prompt

    def inspect(self, evidence: Evidence) -> Scores:
        """Explain every layer's activation of every item, ask the reader, and rebuild the activations.

        Raises:
            NotApplicableError: it was not trained on these layers.
        """
        require_trained(self.name, (), (self.meta_.layer,), evidence, any_layer=self.any_layer)
        values = evidence.residuals.values
        rows = values.flatten(0, 1).float()
        said = self.explain(rows)
        form = self.own_prompt(evidence.question).text
        texts = [form.replace(SLOT, text) for text in said]
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        asked = score_answers(self.verbalizer_, list(number), evidence.answers)
        places = torch.tensor([number[text] for text in texts])
        scores = by_layer(asked.rows(places), len(evidence.layers), ("default",))
        shape = scores.log_scores.shape[:3]
        if evidence.describe:
            scores = replace(scores, texts=np.array(said, dtype=object).reshape(shape))
        if evidence.whole_answers:
            whole = score_answers(self.verbalizer_, list(number), evidence.answers, whole=True).log_probs
            scores = replace(scores, whole=whole[places].reshape(scores.log_scores.shape))
        if self.ar_ is None or shape[2] < 2:
            return scores
        grid = np.array(said, dtype=object).reshape(len(values), -1).tolist()
        errors = [reconstruction_errors(self.ar_, own, texts) for own, texts in zip(values, grid, strict=True)]
        bases = np.array([variance(own) for own in values])
        measures = {name: np.stack([one[name] for one in errors])[:, None] for name in errors[0]}
        # Of each item; the mean over the items is what is meant.
        explained = {name.replace("mse", "fve"): 1 - one / bases[:, None, None] for name, one in measures.items()}
        return replace(scores, measures=measures | explained)

    def explain(self, values: Float[Tensor, "row d_model"]) -> tuple[str, ...]:
        """Return what the verbalizer says of each activation, greedily, between its tags."""
        scaled = normalize(values.float(), dim=1) * self.meta_.length
        at = torch.zeros(len(scaled), dtype=torch.long)
        said = patcher_of(self.av_).generate(self.prompt_, scaled, at, self.steps)
        return tuple(map(explanation_of, said))


def reconstruction_errors(
    rebuild: Callable[[Sequence[str]], Tensor], values: Float[Tensor, "item d_model"], explanations: Sequence[str]
) -> dict[str, Float[np.ndarray, " item"]]:
    """Return how far each activation of a layer is from what is rebuilt of its explanation, of another's, and of none.

    Args:
        rebuild: a reconstructor.
        values: two activations or more.
        explanations: one of each.

    Returns:
        `mse`, `mse_shuffled` and `mse_constant`, all 2 (1 - cos).
    """
    order = list(range(len(explanations)))
    random.Random(0).shuffle(order)
    other = dict(zip(order, [*order[1:], order[0]], strict=True))  # each another one's, once
    *own, constant = rebuild([*explanations, CONSTANT])
    rebuilt = {
        "mse": torch.stack(own),
        "mse_shuffled": torch.stack([own[other[i]] for i in range(len(own))]),
        "mse_constant": constant.expand(len(own), -1),
    }
    real = values.float().to(constant.device)
    return {name: (2 - 2 * cosine_similarity(real, one, dim=1)).double().cpu().numpy() for name, one in rebuilt.items()}


def variance(values: Float[Tensor, "item d_model"]) -> float:
    """Return the variance of activations at length √d_model, by coordinate: what predicting their mean leaves."""
    unit = normalize(values.float(), dim=1).double()
    return max(float((unit - unit.mean(0)).square().sum(1).mean()), 1e-12)
