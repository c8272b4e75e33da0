"""Fits in processes of their own: each is made, and scores, where no other fit has ever been."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensbench.harness.context import RunContext
from lensbench.harness.mapped import Arrays
from lensbench.harness.processes import Process
from lensbench.inspectors.base import Inspector, Lens
from lensbench.inspectors.evidence import Evidence, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Spent
from lensbench.models.language_model import LanguageModel
from lensbench.utils.costs import peak_memory


@dataclass
class IsolatedFits:
    """Makes fits in processes of their own, and ends them all together.

    Attributes:
        arrays: where models and activations are put for them.
    """

    arrays: Arrays
    _processes: list[Process] = field(default_factory=list)

    def fit(self, make: Callable[[], Inspector], context: RunContext, training: Training) -> tuple[Inspector, int]:
        """Fit a method in a new process.

        Args:
            make: makes the inspector, unfitted.
            context: the models that it is given.
            training: what it learns from.

        Returns:
            The inspector, whose answers come from that process; and the most MiB that the process has held.
        """
        inspector = make()
        process = Process(self.arrays, _withheld(inspector, context))
        self._processes.append(process)
        spent, memory = process.call(_fit, make, context.model, context.verbalizer, training)
        if spent is not None:
            context.corpus.spent = spent

        def inspect(evidence: Evidence) -> Scores:
            return process.call(_inspect, evidence)  # type: ignore[no-any-return]

        def logits(layer: int, values: Tensor, attempt: int) -> Tensor:
            return process.call(_logits, layer, values, attempt)  # type: ignore[no-any-return]

        shown: dict[str, Any] = {"inspect": inspect, **({"logits": logits} if isinstance(inspector, Lens) else {})}
        vars(inspector).update(shown)
        return inspector, memory

    def close(self) -> None:
        """End the processes of all fits."""
        while self._processes:
            self._processes.pop().close()


def _withheld(inspector: Inspector, context: RunContext) -> LanguageModel | None:
    """Return the target where the method is given it without blocks: it does not declare to run it in any way."""
    runs = inspector.learns_from == "corpus" or not {"target", "components"}.isdisjoint(inspector.reads)
    return None if runs or context.verbalizer.module is context.model.module else context.model


# In the method's process there is one fit.
_FITTED: list[Inspector] = []


def _fit(
    make: Callable[[], Inspector], model: LanguageModel, verbalizer: LanguageModel, training: Training
) -> tuple[Spent | None, int]:
    _FITTED.append(make().fit(Target(model), verbalizer, training))
    return (training.corpus.spent if training.shows("corpus") else None), peak_memory()


def _inspect(evidence: Evidence) -> Scores:
    return _FITTED[0].inspect(evidence)


def _logits(layer: int, values: Float[Tensor, "item d_model"], attempt: int) -> Float[Tensor, "item vocab"]:
    lens = _FITTED[0]
    assert isinstance(lens, Lens)
    return lens.logits(layer, values, attempt)
