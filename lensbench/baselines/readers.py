"""Inspectors that never see an activation: what baselines put in a method's place."""

from collections import Counter
from typing import ClassVar

import numpy as np
import torch

from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.probes.probing import reduced, require_classes
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import continue_line, score_answers, score_next_tokens
from lensbench.models.tokens import CARRIER

# A baseline must answer wherever a method does; some methods need few subjects an answer.
_LEAST = 2


class TextReader(Inspector):
    """The verbalizer asked in text.

    Args:
        forms: texts that end where the answer begins, one attempt each. `{subject}` and `{source}` are filled from
            the item; a form without slots is asked once.
    """

    name: ClassVar[str] = "text_reader"
    reads: ClassVar[frozenset[Source]] = frozenset({"text"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a form"

    def __init__(self, forms: tuple[Text, ...]) -> None:
        self.forms = forms

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask every form about every item."""
        filled = [
            [form.replace("{source}", text.source).replace("{subject}", text.subject) for text in evidence.texts]
            for form in self.forms
        ]
        asked = [score_answers(self.verbalizer_, texts, evidence.answers) for texts in filled]
        said = (
            [continue_line(self.verbalizer_, texts, evidence.describe) for texts in filled]
            if evidence.describe
            else None
        )
        whole = [
            score_answers(self.verbalizer_, texts, evidence.answers, whole=True).log_probs
            for texts in (filled if evidence.whole_answers else ())
        ]
        return Scores(
            tuple(map(str, self.forms)),
            torch.stack([scores.log_probs for scores in asked])[None],
            torch.stack([scores.ranks for scores in asked])[None],
            None if said is None else np.array(said, dtype=object)[None],
            whole=torch.stack(whole)[None] if whole else None,
        )


class ChoicesOnly(Inspector):
    """Picks from the choice set without question or input: by the answers' prior, the set's centre, ends, or order."""

    name: ClassVar[str] = "choices_only"
    reads: ClassVar[frozenset[Source]] = frozenset({"choices"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "4 ways to pick a choice"

    def inspect(self, evidence: Evidence) -> Scores:
        """Score each item's own choices; one attempt a strategy."""
        tokens = [self.verbalizer_.tokens.answer_token(answer) for answer in evidence.answers]
        prior = score_next_tokens(self.verbalizer_, [CARRIER], tokens).log_probs[0].cpu().double().numpy()
        place = {answer: i for i, answer in enumerate(evidence.answers)}
        scores = np.zeros((1, 4, evidence.n_items, len(evidence.answers)))
        for i, choices in enumerate(evidence.choices):
            own = [place[choice] for choice in choices]
            scores[0, 0, i, own] = prior[own]
            scores[0, 1, i, own] = -prior[own]
            scores[0, 2, i, own] = -np.abs(prior[own] - np.median(prior[own]))
            scores[0, 3, i, own] = -np.arange(len(own))
        return Scores(("likeliest", "unlikeliest", "centre", "first"), torch.from_numpy(scores))


class Majority(Inspector):
    """The best constant of the training folds."""

    name: ClassVar[str] = "majority"
    reads: ClassVar[frozenset[Source]] = frozenset()
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Majority":
        """Count the training labels.

        Raises:
            NotApplicableError: an answer has too few training subjects: a constant seen elsewhere would always be
                wrong.
        """
        require_classes(training, _LEAST)
        self.counts_ = Counter(training.labels)
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Score every answer by its count."""
        counts = torch.tensor([float(self.counts_[answer]) for answer in evidence.answers])
        return Scores(("default",), counts.log().expand(1, 1, evidence.n_items, -1).clone())


class InputClassifier(Inspector):
    """Logistic regression on characters and words of the source text: what its spelling gives away."""

    name: ClassVar[str] = "input_classifier"
    reads: ClassVar[frozenset[Source]] = frozenset({"text"})
    learns_from: ClassVar[Learns] = "labels"

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "InputClassifier":
        """Fit on the training items' texts.

        Raises:
            NotApplicableError: an answer has too few training subjects.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import FeatureUnion
        from threadpoolctl import threadpool_limits

        require_classes(training, _LEAST)
        features = FeatureUnion(
            [
                ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)),
                ("words", TfidfVectorizer(analyzer="word", token_pattern=r"\S+", sublinear_tf=True)),
            ]
        )
        self.features_ = features
        found = features.fit_transform([text.source for text in training.texts]).toarray()
        rotated, self.basis_ = reduced(found, len(found))
        with threadpool_limits(1):
            self.classifier_ = LogisticRegression(C=10.0, max_iter=300).fit(rotated, list(training.labels))
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Return the classifier's log-probabilities."""
        out = np.full((1, 1, len(evidence.texts), len(evidence.answers)), -np.inf)
        columns = [evidence.answers.index(answer) for answer in self.classifier_.classes_]
        found = self.features_.transform([text.source for text in evidence.texts]).toarray() @ self.basis_
        out[0, 0][:, columns] = self.classifier_.predict_log_proba(found)
        return Scores(("default",), torch.from_numpy(out))
