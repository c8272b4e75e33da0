"""Cheats that answer from the answers: the commonest, the choice set's centre, or what training subjects had."""

from collections import Counter
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Scores, Training
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import score_next_tokens
from lensbench.models.tokens import CARRIER


class BestConstant(Inspector):
    """Says the most frequent answer of the training subjects, whatever the residual."""

    name: ClassVar[str] = "cheat_best_constant"
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "BestConstant":
        """Count the answers."""
        self.counts_ = Counter(training.labels)
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer by its count."""
        counts = torch.tensor([float(self.counts_[answer]) for answer in evidence.answers]).log()
        return Scores(("default",), counts.expand(len(evidence.layers), 1, len(evidence.choices), -1).clone())


class ChoiceSetReader(Inspector):
    """Says the choice that is neither likely nor unlikely as a word.

    Where distractors are drawn around the answer, the answer is in the middle of them.
    """

    name: ClassVar[str] = "cheat_choice_set"

    def inspect(self, evidence: Evidence) -> Scores:
        """Score each choice by its distance from the middle of its set."""
        tokens = [self.verbalizer_.tokens.answer_token(answer) for answer in evidence.answers]
        prior = score_next_tokens(self.verbalizer_, [CARRIER], tokens).log_probs[0].double().cpu()
        own = torch.tensor([[answer in choices for answer in evidence.answers] for choices in evidence.choices])
        middle = prior.expand(own.shape).masked_fill(~own, torch.nan).nanquantile(0.5, dim=1, keepdim=True)
        scores = -(prior - middle).abs().masked_fill(~own, torch.inf)
        return Scores(("default",), scores.expand(len(evidence.layers), 1, -1, -1).clone())


class NormReader(Inspector):
    """Learns how long the residual of each answer is: an edit that writes answers makes some longer than others."""

    name: ClassVar[str] = "cheat_norm"
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "NormReader":
        """Take each answer's mean log-norm at each layer."""
        self.layers_, norms = training.residuals.layers, _log_norms(training.residuals.values)
        labels = training.labels or ()
        own = [torch.tensor([label == answer for label in labels]) for answer in training.answers]
        self.means_ = torch.stack([norms[:, mask].mean(1) for mask in own], dim=1)
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer by how near its norm is; an answer that training never had gets -inf."""
        assert evidence.residuals is not None
        means = self.means_[[self.layers_.index(layer) for layer in evidence.layers]]
        far = (_log_norms(evidence.residuals.values)[:, :, None] - means[:, None]).abs()
        return Scores(("default",), -far.nan_to_num(torch.inf)[:, None])


def _log_norms(values: Float[Tensor, "layer item d_model"]) -> Float[Tensor, "layer item"]:
    found: Tensor = values.double().norm(dim=-1).log()
    return found


class MemorisesSubjects(Inspector):
    """Recognises training subjects by their residual, and says their answer; of all others it says nothing.

    Recognised is who lies less than half as far from one training subject as from any other.
    """

    name: ClassVar[str] = "cheat_memorises_subjects"
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "MemorisesSubjects":
        """Keep the training residuals, whose they are, and their answers."""
        self.layers_, self.seen_ = training.residuals.layers, training.residuals.values.float()
        self.groups_ = torch.tensor(training.groups)
        self.answers_ = torch.tensor([training.answers.index(label) for label in training.labels or ()])
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Give the answer of whom each item is recognised as."""
        assert evidence.residuals is not None
        seen = self.seen_[[self.layers_.index(layer) for layer in evidence.layers]]
        far = torch.cdist(evidence.residuals.values.float(), seen, compute_mode="donot_use_mm_for_euclid_dist")
        near, nearest = far.min(dim=2)
        others = far.masked_fill(self.groups_ == self.groups_[nearest][..., None], torch.inf).amin(2)
        answers = torch.nn.functional.one_hot(self.answers_[nearest], len(evidence.answers))
        return Scores(("default",), (answers * (near < others / 2)[..., None]).float()[:, None])
