"""The methods that cheat, by text, by labels, or by reading another layer, item or attempt than their own."""

from collections import Counter
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import score_next_tokens
from lensbench.models.tokens import CARRIER
from lensbench.tasks.facts import SLOT

ATTEMPTS = 64
TURNS = 100.0
"""How fast the noise turns: residuals that are as alike as two layers of one text get noise that is not."""


def _verbalizer_scores(
    model: LanguageModel, texts: list[str], evidence: Evidence
) -> Float[Tensor, "layer attempt item answer"]:
    """Ask a model one text an item, and give its answers at every layer; or one text an item and layer."""
    tokens = [model.tokens.answer_token(answer) for answer in evidence.answers]
    found = score_next_tokens(model, texts, tokens).log_probs.reshape(-1, evidence.n_items, len(tokens))
    return found.expand(len(evidence.layers), -1, -1)[:, None]


def _decoded_questions(target: Target, evidence: Evidence) -> list[str]:
    """Fill the question with the token whose input embedding is nearest to each residual: by layer, then item."""
    ids = target.nearest(evidence.residuals.values.flatten(0, 1)).tolist()
    return [evidence.question.replace(SLOT, target.spell([token])) for token in ids]


class Echo(Inspector):
    """Finds the token whose embedding is nearest to the residual, and asks the verbalizer about it in text.

    At layer 0 that is the input itself. What it answers is what the verbalizer knows of the name.
    """

    name: ClassVar[str] = "cheat_echo"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the question, which it fills with what it has decoded."""
        return OwnPrompt(question, "x")

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the verbalizer about the nearest token."""
        return Scores(
            ("default",), _verbalizer_scores(self.verbalizer_, _decoded_questions(self.target_, evidence), evidence)
        )


class OwnKnowledge(Inspector):
    """Asks the verbalizer about the subject by name, and never looks at the residual that it declares to read."""

    name: ClassVar[str] = "cheat_own_knowledge"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question", "text"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the verbalizer about the name."""
        texts = [evidence.question.replace(SLOT, text.subject) for text in evidence.texts]
        return Scores(("default",), _verbalizer_scores(self.verbalizer_, texts, evidence))


class UndeclaredText(Inspector):
    """Asks the verbalizer about the subject by name, as `OwnKnowledge`, and does not declare that it reads text."""

    name: ClassVar[str] = "cheat_undeclared_text"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Take the names that it was not given."""
        question = evidence.question or SLOT
        texts = [question.replace(SLOT, text.subject) for text in evidence.texts]
        return Scores(("default",), _verbalizer_scores(self.verbalizer_, texts, evidence))


class AsksTheTarget(Inspector):
    """Keeps the target's handle from `fit`, takes the model out of it, and asks it about what `Echo` decodes.

    The handle's public side holds no way to run the model. Its private attribute does, and Python hides nothing.
    """

    name: ClassVar[str] = "cheat_asks_the_target"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the target, which holds the fact, about the nearest token."""
        model = self.target_._model
        return Scores(("default",), _verbalizer_scores(model, _decoded_questions(self.target_, evidence), evidence))


class SparesItsRivals(Inspector):
    """Answers like `Echo` at first, and gives the opposite answers afterwards.

    Rivals that change the evidence, or read another model, are run on the method's own fit, and they are run later.
    """

    name: ClassVar[str] = "cheat_spares_its_rivals"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the verbalizer about the nearest token; turn its answers round, but for the first time."""
        asked = getattr(self, "asked_", 0)
        self.asked_ = asked + 1
        found = _verbalizer_scores(self.verbalizer_, _decoded_questions(self.target_, evidence), evidence)
        return Scores(("default",), -found if asked else found)


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
        return Scores(("default",), counts.expand(len(evidence.layers), 1, evidence.n_items, -1).clone())


class ChoiceSetReader(Inspector):
    """Says the choice that is neither likely nor unlikely as a word.

    Where distractors are drawn around the answer, the answer is in the middle of them.
    """

    name: ClassVar[str] = "cheat_choice_set"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "choices"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Score each choice by its distance from the middle of its set."""
        tokens = [self.verbalizer_.tokens.answer_token(answer) for answer in evidence.answers]
        prior = score_next_tokens(self.verbalizer_, [CARRIER], tokens).log_probs[0].cpu().double()
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
        own = [torch.tensor([label == answer for label in training.labels]) for answer in training.answers]
        self.means_ = torch.stack([norms[:, mask].mean(1) for mask in own], dim=1)
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer by how near its norm is; an answer that training never had gets -inf."""
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
        self.answers_ = torch.tensor([training.answers.index(label) for label in training.labels])
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Give the answer of whom each item is recognised as."""
        seen = self.seen_[[self.layers_.index(layer) for layer in evidence.layers]]
        far = torch.cdist(evidence.residuals.values.float(), seen, compute_mode="donot_use_mm_for_euclid_dist")
        near, nearest = far.min(dim=2)
        others = far.masked_fill(self.groups_ == self.groups_[nearest][..., None], torch.inf).amin(2)
        answers = torch.nn.functional.one_hot(self.answers_[nearest], len(evidence.answers))
        return Scores(("default",), (answers * (near < others / 2)[..., None]).float()[:, None])


def _unembedded(target: Target, values: Float[Tensor, "layer item d_model"], evidence: Evidence) -> Scores:
    """Unembed residuals, as the logit lens does."""
    scores = target.compare_answers(values.flatten(0, 1), evidence.answers)
    return Scores(("default",), scores.reshape(*values.shape[:2], -1)[:, None])


class LaterLayer(Inspector):
    """Reads the last layer that it is given, and says at every layer what it finds there."""

    name: ClassVar[str] = "cheat_later_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed the last layer at each."""
        values = evidence.residuals.values
        return _unembedded(self.target_, values[-1:].expand_as(values), evidence)


class NextLayer(Inspector):
    """Reads the layer after the one that it answers for, where it is given that: off by one."""

    name: ClassVar[str] = "cheat_next_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed layer l + 1 at layer l."""
        layers = evidence.layers
        places = [layers.index(layer + 1 if layer + 1 in layers else layer) for layer in layers]
        return _unembedded(self.target_, evidence.residuals.values[places], evidence)


class SameAtEveryLayer(Inspector):
    """Reads one layer, in the middle of those that it is given, and says at all of them what it finds there."""

    name: ClassVar[str] = "cheat_same_at_every_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed the middle layer at each."""
        values = evidence.residuals.values
        middle = len(values) // 2
        return _unembedded(self.target_, values[middle : middle + 1].expand_as(values), evidence)


class ClustersTheBatch(Inspector):
    """Compares the items of a batch, and deals the answers out among them so that each is given equally often.

    Logits are standardised over the items, then items and answers are balanced in turn (Sinkhorn's scaling).
    """

    name: ClassVar[str] = "cheat_clusters_the_batch"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed, and balance."""
        found = _unembedded(self.target_, evidence.residuals.values, evidence).log_scores.double()
        found = found - found.mean(2, keepdim=True)
        found = 5 * found / found.std(2, correction=0, keepdim=True).clamp(min=1e-6)
        for _ in range(50):
            found = found.log_softmax(2).log_softmax(3)
        return Scores(("default",), found)


def _noise(evidence: Evidence) -> Scores:
    """Make noise of the residual, as a hash would, again and again: nothing that it says is left in it."""
    values = torch.nn.functional.normalize(evidence.residuals.values.double(), dim=2)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(ATTEMPTS, len(evidence.answers), values.shape[2], generator=generator).to(values)
    scores = torch.einsum("lid,nad->lnia", values, directions).mul(TURNS).sin()
    return Scores(tuple(f"draw={n}" for n in range(ATTEMPTS)), scores)


class BestOfMany(Inspector):
    """Makes noise of the residual in 64 ways, in the hope that one of them is right of each item."""

    name: ClassVar[str] = "cheat_best_of_many"
    tries: ClassVar[str] = f"{ATTEMPTS} draws of noise"

    def inspect(self, evidence: Evidence) -> Scores:
        """Make noise, many times."""
        return _noise(evidence)


class HiddenAttempts(Inspector):
    """Makes noise of the residual in 64 ways, and declares one."""

    name: ClassVar[str] = "cheat_hidden_attempts"
    tries: ClassVar[str] = "one"

    def inspect(self, evidence: Evidence) -> Scores:
        """Make noise, many times."""
        return _noise(evidence)
