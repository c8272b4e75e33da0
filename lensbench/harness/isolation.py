"""A sealed target: a method that runs it without having declared this is stopped."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel


class SealedError(LensbenchError):
    """A method ran a model that it had not declared to run."""


@contextmanager
def sealed(model: LanguageModel, who: str) -> Iterator[None]:
    """Let no pass through the model's blocks while inside; its embeddings, norm and head stay open.

    Args:
        model: the target.
        who: the method at work, for the error.

    Raises:
        SealedError: from inside, where a block is run.
    """

    def refuse(_module: nn.Module, _arguments: Any) -> None:
        raise SealedError(
            f"{who} ran {model.name} without declaring it; add 'target' to its `reads`, or leave it alone"
        )

    measure(model)
    hooks = [block.register_forward_pre_hook(refuse) for block in model.parts.blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sealed_unless_declared(
    target: LanguageModel, verbalizer: LanguageModel, who: str, reads: Collection[str]
) -> AbstractContextManager[None]:
    """Seal the target from a method that does not declare to run it.

    Where target and verbalizer are one model it cannot be told which is run. Methods that read `components` have them
    read from the target as they go.
    """
    free = verbalizer.module is target.module or not {"target", "components"}.isdisjoint(reads)
    return nullcontext() if free else sealed(target, who)


def measure(model: LanguageModel) -> None:
    """Have what a model finds out about itself by passes of its own, once and when first needed, found out now."""
    model.token_logits(torch.zeros(1, model.d_model, dtype=model.dtype, device=model.device), [0])
    _ = model.token_bytes
