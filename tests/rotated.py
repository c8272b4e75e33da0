"""A Llama in another basis: the same function of its tokens, every residual rotated."""

import copy

from torch import Tensor

from lensbench.models.edits import rotate
from lensbench.models.language_model import LanguageModel


def rotated(model: LanguageModel, seed: int = 0) -> tuple[LanguageModel, Tensor]:
    """Return a copy of a Llama whose residuals are R h in place of h at every layer and position, and R."""
    module = copy.deepcopy(model.module)
    exact = rotate(module, seed)
    return LanguageModel(module, model.tokens, f"{model.name}-rotated"), exact
