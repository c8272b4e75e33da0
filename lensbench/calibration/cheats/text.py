"""Cheats that answer from text: the input, the verbalizer's knowledge, or the target, asked without leave."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Scores, Source
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import score_next_tokens
from lensbench.tasks.facts import SLOT


def _asked(model: LanguageModel, texts: list[str], evidence: Evidence) -> Float[Tensor, "layer attempt item answer"]:
    """Ask a model one text an item, and give its answers at every layer; or one text an item and layer."""
    tokens = [model.tokens.answer_token(answer) for answer in evidence.answers]
    found = score_next_tokens(model, texts, tokens).log_probs.reshape(-1, len(evidence.choices), len(tokens))
    return found.expand(len(evidence.layers), -1, -1)[:, None]


def _echoes(target: Target, evidence: Evidence) -> list[str]:
    """Fill the question with the token whose input embedding is nearest to each residual: by layer, then item."""
    assert evidence.residuals is not None
    assert evidence.question is not None
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
        return Scores(("default",), _asked(self.verbalizer_, _echoes(self.target_, evidence), evidence))


class OwnKnowledge(Inspector):
    """Asks the verbalizer about the subject by name, and never looks at the residual that it declares to read."""

    name: ClassVar[str] = "cheat_own_knowledge"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question", "text"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the verbalizer about the name."""
        assert evidence.texts is not None
        assert evidence.question is not None
        texts = [evidence.question.replace(SLOT, text.subject) for text in evidence.texts]
        return Scores(("default",), _asked(self.verbalizer_, texts, evidence))


class UndeclaredText(Inspector):
    """Asks the verbalizer about the subject by name, as `OwnKnowledge`, and does not declare that it reads text."""

    name: ClassVar[str] = "cheat_undeclared_text"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Take the names that it was not given."""
        question = evidence.question or SLOT
        texts = [question.replace(SLOT, text.subject) for text in evidence.texts]
        return Scores(("default",), _asked(self.verbalizer_, texts, evidence))


class AsksTheTarget(Inspector):
    """Keeps the target's handle from `fit`, takes the model out of it, and asks it about what `Echo` decodes.

    The handle's public side holds no way to run the model. Its private attribute does, and Python hides nothing.
    """

    name: ClassVar[str] = "cheat_asks_the_target"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the target, which holds the fact, about the nearest token."""
        model = self.target_._model
        return Scores(("default",), _asked(model, _echoes(self.target_, evidence), evidence))


class SparesItsRivals(Inspector):
    """Answers as `Echo` does when it is asked first, and says the opposite ever after.

    Rivals that change the evidence, or read another model, are run on the method's own fit, and they are run later.
    """

    name: ClassVar[str] = "cheat_spares_its_rivals"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})

    def inspect(self, evidence: Evidence) -> Scores:
        """Ask the verbalizer about the nearest token; turn its answers round, but for the first time."""
        asked = getattr(self, "asked_", 0)
        self.asked_ = asked + 1
        found = _asked(self.verbalizer_, _echoes(self.target_, evidence), evidence)
        return Scores(("default",), -found if asked else found)
