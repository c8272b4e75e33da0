"""Jacobian lens."""

import inspect as introspection
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import SPLIT_HALF, Corpus
from lensbench.models.jacobian_lens_files import read_jacobians, save_jacobians
from lensbench.models.jacobians import later_jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Resumable, TrainingSchedule
from lensbench.models.relevance import relevance_rules
from lensbench.utils.code import code_digest

# What files call them by.
ESTIMATORS = {"later": "jacobian_lens", "same": "same_position_jacobian_lens", "relevance": "relevance_lens"}


class JacobianLens(Translator):
    """U(N((J_l + λI) h_l)): each layer carried to the last by the model's own mean derivative (Anthropic 2026).

    J_l is the mean over prompts of 1/|V| Σ_{p∈V} Σ_{p'∈V, p'≥p} ∂h_L(p') / ∂h_l(p): what a small change at one
    position does to this and all later positions of the last layer, before the final norm. V are the positions 16 to
    T - 2 of a prompt of T tokens. Nothing is fitted to what the model says, and there is no offset. At the last layer
    J is the identity, and the lens the model. λ is ours, and so is layer 0, which the published lens leaves out.

    A row of J for a prompt is a backward pass. Each prompt gives some rows, drawn so that every row is the mean over
    as many prompts: an unbiased estimate of the mean over all.

    Args:
        estimator: `later`, as above; `relevance`, the R-lens: the same, differentiated under the rules of
            `models.relevance` (RelP, arXiv 2508.21258); or `same`, the variant with p' = p alone, at one position of
            each text.
        prompts: texts in the mean, of 128 tokens (`same`: of as many as end at the position).
        rows: how many rows of J each prompt gives, at least; d_model or more gives every prompt's whole J.
        target_layer: whose residuals are differentiated, the last by default; from there on the lens is the logit lens.
        identity: λ, so much of the residual itself is added; much of it gives the logit lens.
        seed: which texts and rows are drawn.
        path: a `.pt` file with J in its published form; nothing is learned then, and of the others only `identity` may
            be given. Layer 0 is read as the logit lens does where the file has no J for it, as published files have
            none.
    """

    name: ClassVar[str] = "jacobian_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "prompts × rows backward passes of 128 tokens, once a model; then a matrix and the head"

    def __init__(
        self,
        estimator: str = "later",
        prompts: int = 100,
        rows: int = 24,
        target_layer: int | None = None,
        identity: float = 0.0,
        seed: int = 0,
        path: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.prompts = prompts
        self.rows = rows
        self.target_layer = target_layer
        self.identity = identity
        self.seed = seed
        self.path = path

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse an unknown estimator, amounts that cannot be, a target layer that is not there, and files of others.

        Raises:
            UsageError: what was given, and what to give instead.
            LensbenchError: the R-lens's rules are not known for the model's blocks.
        """
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"jacobian_lens.estimator = {self.estimator!r}: expected one of {', '.join(ESTIMATORS)}")
        for name in ("prompts", "rows"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"jacobian_lens.{name} = {getattr(self, name)!r}: expected 1 or more")
        if not isinstance(self.identity, int | float) or not 0 <= self.identity < math.inf:
            raise UsageError(f"jacobian_lens.identity = {self.identity!r}: expected 0 or more")
        layer, last = self.target_layer, target.n_layers
        if layer is not None and (self.estimator == "same" or type(layer) is not int or not 2 <= layer <= last):
            raise UsageError(
                f"jacobian_lens.target_layer = {layer!r}: expected 2 to {last}; for the estimator same none"
            )
        if self.path is None:
            if self.estimator == "relevance":
                target.require_relevance_rules()
            return
        defaults = introspection.signature(type(self)).parameters
        for name in self.learning:
            if getattr(self, name) != defaults[name].default:
                raise UsageError(
                    f"jacobian_lens.{name} is for fitting, and jacobian_lens.path for reading: give only one"
                )
        read_jacobians(self.files()[0], target.identity)

    @property
    def learning(self) -> dict[str, object]:
        """What the learning depends on, by parameter."""
        return {name: value for name, value in self.parameters().items() if name not in ("identity", "path")}

    def files(self) -> tuple[Path, ...]:
        """Return the file that J is read from."""
        # What is no text, such as a number of the command line, is the name of no file.
        return () if self.path is None else (Path(str(self.path)).expanduser(),)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "JacobianLens":
        """Differentiate the target on prose, or take J from the cache (it is the same for every λ) or from the file."""
        self.target_ = target
        if self.path is not None:
            weight = read_jacobians(self.files()[0], target.identity)
            learned = {"weight": weight.to(target.device), SPLIT_HALF: torch.zeros(0)}
        else:
            corpus = training.corpus
            settings = {**self.learning, "code": [code_digest(later_jacobian), code_digest(relevance_rules)]}
            learned = corpus.learn_once(type(self), settings, lambda learning: self._learn(target, corpus, learning))
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        self.split_half_: Float[Tensor, " layer"] = learned[SPLIT_HALF]
        return self

    def save(self, folder: Path) -> None:
        """Write J as `jacobian_lens.pt` in its published form, in half precision, into a new folder.

        Raises:
            UsageError: there is such a folder, or J was itself read from a file.
        """
        if self.path is not None:
            raise UsageError(f"this lens was read from {self.path}, which is already a file; copy it")
        made_by = {
            "estimator": ESTIMATORS[self.estimator],
            "n_prompts": self.prompts,
            "parameters": self.learning,
            "split_half": self.split_half_.tolist(),
        }
        save_jacobians(self.weight_, made_by, self.target_.identity, folder)

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return J h + λ h at each layer; from the target layer on, residuals stay as they are."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._carried(layer, h) if layer < len(self.weight_) else h for layer, h in pairs])

    def _carried(self, layer: int, h: Tensor) -> Tensor:
        return (h.float() @ self.weight_[layer].T + self.identity * h.float()).to(h.dtype)

    def _learn(self, target: Target, corpus: Corpus, learning: TrainingSchedule) -> dict[str, Tensor]:
        last = self.target_layer or target.n_layers
        halves = _Halves(last, target)
        shares = list(_shares(self.prompts, self.rows, target.d_model, self.seed))
        if self.estimator == "same":
            contexts = corpus.contexts(self.prompts, self.seed)
        else:
            prompts = corpus.prompts(self.prompts, self.seed)
        for step in learning.steps(self.prompts, halves):
            half, rows = shares[step]
            if self.estimator == "same":
                found = corpus.jacobian(contexts[step], rows)
            else:
                found = corpus.later_jacobian(prompts[step], rows, last, relevance=self.estimator == "relevance")
            halves.add(half, rows, found)
        return {"weight": halves.mean(), SPLIT_HALF: halves.split_half()}


def _shares(prompts: int, rows: int, d_model: int, seed: int) -> Iterator[tuple[int, Int[Tensor, " row"]]]:
    """Yield for each prompt the half that it belongs to, and its rows.

    Prompts form groups; the rows of one whole J are dealt out in each by chance, so that every row is known from as
    many prompts as there are groups. Groups belong to the two halves by turns.
    """
    groups = max(min(2, prompts), math.ceil(prompts * min(rows, d_model) / d_model))
    generator = torch.Generator().manual_seed(seed)
    for number, group in enumerate(torch.arange(prompts).tensor_split(groups)):
        for share in torch.randperm(d_model, generator=generator).tensor_split(len(group)):
            yield number % 2, share


class _Halves(Resumable):
    """The sums of the rows so far, of two halves of the prompts."""

    def __init__(self, layers: int, target: Target) -> None:
        d = target.d_model
        self._sum = torch.zeros(2, layers, d, d, device=target.device)
        self._count = torch.zeros(2, d, device=target.device)

    def add(self, half: int, rows: Int[Tensor, " row"], found: Float[Tensor, "layer row d_model"]) -> None:
        self._sum[half][:, rows.to(found.device)] += found
        self._count[half, rows.to(found.device)] += 1

    def mean(self) -> Float[Tensor, "layer d_model d_model"]:
        """Return the mean of each row over its prompts; zero for one that no prompt has given."""
        return self._sum.sum(0) / self._count.sum(0).clamp(min=1)[:, None]

    def split_half(self) -> Float[Tensor, " layer"]:
        """Return the cosine between the two halves' J, over the rows that both know; nothing where there are none.

        Each half is the mean of half the prompts, so the whole is nearer to the true mean than this says.
        """
        both = (self._count > 0).all(0)
        if not bool(both.any()):
            return torch.zeros(0)
        first, second = (self._sum[half][:, both].flatten(1) for half in (0, 1))
        return torch.cosine_similarity(first, second, dim=1)

    def state(self) -> dict[str, Tensor]:
        """Return the sums, and of how many."""
        return {"sum": self._sum, "count": self._count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        self._sum, self._count = state["sum"], state["count"]
