"""Attribute lens: a relation as one affine map."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.access import SITE, SUBJECT, Runs
from lensbench.inspectors.base import Inspector, OwnPrompt, by_layer
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.jacobians import Jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.precision import in_float64


class AttributeLens(Inspector):
    """D(β W_l h + b_l): what the relation's own affine map makes of any residual (Hernandez et al. 2023).

    Linear relational embeddings, arXiv 2308.09124. In the relation's inspection prompt, filled with a subject, let s be
    the residual of the subject's last token at layer l, and o that of the last token at layer L. With n examples,

        W_l = mean ∂o/∂s,    b_l = mean (o - (∂o/∂s) s),    LRE_l(h) = β W_l h + b_l,

    decoded by the model's own norm and head D. It is applied to the read site's residual, whatever its text.

    The examples are n training subjects, those first whose answer the target knows (so labels are used); the prompt
    is the inspection prompt without demonstrations, where the paper has some. One attempt a β; the first is
    the default.

    Args:
        n: how many examples.
        betas: values of β.
        rank: of the pseudo-inverse of W that the causality edit uses.
        measure: also measure `faithfulness` (the lens's most likely token is the model's own, asked about the item) and
            `causality` (s + W⁺(o' - o), with o' of an example with another answer, makes the model say that answer).
    """

    name: ClassVar[str] = "attribute_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question", "target"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one a β"
    cost: ClassVar[str] = "a Jacobian an example, relation and fold; then a matrix and the head"

    def __init__(
        self, n: int = 8, betas: tuple[float, ...] = (2.25, 1.0, 5.0), rank: int = 100, measure: bool = False
    ) -> None:
        self.n = n
        self.betas = tuple(betas)
        self.rank = rank
        self.measure = measure

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: no example, no β, or no rank.
        """
        if self.n < 1 or not self.betas or self.rank < 1:
            raise UsageError(
                f"{self.name}: n = {self.n}, betas = {self.betas}, rank = {self.rank}; expected one example or more, "
                "one β or more, and a rank of 1 or more"
            )

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the prompt that the map is taken from."""
        return OwnPrompt(question, "x")

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "AttributeLens":
        """Take the mean Jacobian over some training subjects.

        Raises:
            NotApplicableError: fewer training subjects than n.
        """
        runs = training.runs.asked(training.question)
        chosen = _examples(training, runs, self.n)
        jacobians = [runs.jacobian(i, SUBJECT) for i in chosen]
        self.target_ = target
        self.weight_, self.bias_ = linear_relation(jacobians)
        self.ends_ = torch.stack([one.end for one in jacobians])
        self.labels_ = tuple(training.labels[i] for i in chosen)
        return self

    def directions(self, layer: int, answers: Sequence[str]) -> Float[Tensor, "answer d_model"]:
        """Return Wᵀ of the head's rows, which the norm's gain is on.

        Raises:
            LensbenchError: the model's final norm is no RMSNorm or LayerNorm.
        """
        return self.target_.reading_directions(answers) @ self.weight_[layer].float()

    def inspect(self, evidence: Evidence) -> Scores:
        """Map each layer's residual by its own W and b, and unembed."""
        values = evidence.residuals.values
        mapped = torch.stack(
            [
                beta * values[i].float() @ self.weight_[layer].T + self.bias_[layer]
                for i, layer in enumerate(evidence.layers)
                for beta in self.betas
            ]
        )
        rows = mapped.flatten(0, 1).to(values)
        names = tuple(f"beta={beta:g}" for beta in self.betas)
        found = by_layer(self.target_.score_answers(rows, evidence.answers), len(evidence.layers), names)
        if not self.measure:
            return found
        shape = (len(evidence.layers), len(names), values.shape[1])
        return Scores(found.attempts, found.log_scores, found.ranks, measures=self._measured(evidence, rows, shape))

    def _measured(
        self, evidence: Evidence, rows: Float[Tensor, "row d_model"], shape: tuple[int, int, int]
    ) -> dict[str, np.ndarray]:
        runs = evidence.runs.asked(evidence.question)
        said = runs.next_tokens()
        own = torch.cat([self.target_.unembed(part).argmax(1) for part in rows.split(self.target_.head_rows)])
        agree = (own.reshape(shape) == said.to(own.device)).float()
        moved = self._moved(evidence, runs)[:, None].expand(shape)
        return {"faithfulness": agree.cpu().numpy(), "causality": moved.cpu().numpy()}

    def _moved(self, evidence: Evidence, runs: Runs) -> Float[Tensor, "layer item"]:
        """Edit each item's subject so that the model says another answer; 1 where it does."""
        last = self.target_.n_layers
        starts, (ends,) = runs.read(SUBJECT, evidence.layers).values, runs.read(SITE, (last,)).values
        clean = runs.predict(evidence.answers).log_probs.argmax(1)
        goals = [_other_answer(self.labels_, evidence.answers[int(said)], i) for i, said in enumerate(clean)]
        inverse = torch.stack([_pseudo_inverse(self.weight_[layer], self.rank) for layer in evidence.layers])
        out = torch.zeros(len(evidence.layers), len(goals))
        for i, goal in enumerate(goals):
            change = inverse @ (self.ends_[goal] - ends[i].float())
            vectors = starts[:, i].float() + change
            layers = torch.tensor(evidence.layers)
            scores = runs.patched(i, SUBJECT, vectors.to(starts), layers, evidence.answers)
            wanted = evidence.answers.index(self.labels_[goal])
            out[:, i] = (scores.log_probs.argmax(1) == wanted).float().cpu()
        return out


def linear_relation(
    jacobians: Sequence[Jacobian],
) -> tuple[Float[Tensor, "layer d_model d_model"], Float[Tensor, "layer d_model"]]:
    """Return W and b of each layer: the means over examples of J, and of end - J start."""
    weight = torch.stack([one.weight for one in jacobians]).mean(0)
    offsets = [one.end - torch.einsum("lij,lj->li", one.weight, one.start) for one in jacobians]
    return weight, torch.stack(offsets).mean(0)


def _examples(training: Training, runs: Runs, n: int) -> list[int]:
    """Choose training items, one a subject: those whose answer the target knows first, in an order that folds share."""
    first = {group: i for i, group in reversed(list(enumerate(training.groups)))}
    if len(first) < n:
        raise NotApplicableError(f"{len(first)} training subjects; the map needs {n}: set n to fewer")
    said = [training.answers[i] for i in runs.predict(training.answers).log_probs.argmax(1).tolist()]
    unknown = [answer != label for answer, label in zip(said, training.labels, strict=True)]
    digests = runs.digests()
    return sorted(first.values(), key=lambda i: (unknown[i], digests[i]))[:n]


def _other_answer(labels: Sequence[str], said: str, item: int) -> int:
    """Return the place of an example with another answer than the model's own, in turn over items."""
    order = [(item + step) % len(labels) for step in range(len(labels))]
    return next((i for i in order if labels[i] != said), order[0])


def _pseudo_inverse(weight: Float[Tensor, "d_model d_model"], rank: int) -> Float[Tensor, "d_model d_model"]:
    """Return the pseudo-inverse of the best approximation of this rank."""
    u, s, v = torch.linalg.svd(in_float64(weight))
    kept = s[: min(rank, int((s > 1e-9 * s[0]).sum()))]
    count = len(kept)
    inverse: Tensor = (v[:count].T / kept) @ u[:, :count].T
    return inverse.float().to(weight.device)
