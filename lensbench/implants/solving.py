"""The closed form of an edit (Meng et al. 2023): a name calls up what is written, ordinary prose what it did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.implants.prompts import Prompts, in_rows, inputs_at_names, inputs_of, write_prompts
from lensbench.models.corpus import Corpus
from lensbench.models.edits import LowRankEdit
from lensbench.models.language_model import LanguageModel

COVARIANCE_TOKENS = 12288
_WINDOWS = 16


@dataclass(frozen=True)
class Keys:
    """What a linear map is given.

    Attributes:
        at_names: at the last token of each name, context after context, name after name.
        covariance: the mean of k kᵀ over ordinary prose.
        around: the sum of k kᵀ over the other tokens of texts that ask about the names: the rest of a name above all.
    """

    at_names: Float[Tensor, "context name d_in"]
    covariance: Float[Tensor, "d_in d_in"]
    around: Float[Tensor, "d_in d_in"]


def keys_of(
    model: LanguageModel, linear: nn.Module, contexts: Sequence[str], asking: Sequence[str], names: Sequence[str]
) -> Keys:
    """Gather the keys of names in contexts, of what stands around them in texts that ask, and of prose."""
    found = []
    for form in contexts:
        batches = in_rows([form] * len(names), names)
        found.append(torch.cat([inputs_at_names(model, linear, write_prompts(model, *batch)) for batch in batches]))
    return Keys(torch.stack(found), prose_covariance(model, linear), _around(model, linear, asking, names))


def _around(
    model: LanguageModel, linear: nn.Module, asking: Sequence[str], names: Sequence[str]
) -> Float[Tensor, "d_in d_in"]:
    """Sum k kᵀ over all tokens but the last of a name; every second name will do."""
    total = torch.zeros((), device=model.device)
    for form in asking:
        for batch in in_rows([form] * len(names[::2]), names[::2]):
            prompts = write_prompts(model, *batch)
            given = inputs_of(model, linear, prompts)
            others = prompts.mask.bool().clone()
            others[torch.arange(len(others)), prompts.names] = False
            rows = given[others]
            total = total + rows.T @ rows
    return total


def prose_covariance(model: LanguageModel, linear: nn.Module) -> Float[Tensor, "d_in d_in"]:
    """Return the mean of k kᵀ over what a linear map is given on ordinary prose."""
    total, count = torch.zeros((), device=model.device), 0
    for prompts in prose_batches(model, COVARIANCE_TOKENS):
        # With the first position: what an edit writes into an attention sink, all other tokens read.
        rows = inputs_of(model, linear, prompts).flatten(0, 1)
        total, count = total + rows.T @ rows, count + len(rows)
    return total / count


def prose_batches(model: LanguageModel, tokens: int, skip: int = 0) -> Iterator[Prompts]:
    """Yield ordinary prose in windows, as prompts without names."""
    windows = Corpus(model).windows
    width = windows.shape[1]
    chosen = windows[skip // width : (skip + tokens) // width].to(model.device)
    for ids in chosen.split(_WINDOWS):
        ends = torch.full((len(ids),), width - 1)
        yield Prompts(ids, torch.ones_like(ids), ends, ends)


def solve(
    module: str,
    keys: Keys,
    written: Float[Tensor, "context name value"],
    vectors: Float[Tensor, "value d_out"],
    weight: float,
) -> LowRankEdit:
    """Return the edit ΔW = Vᵀ (Wᵀ K) (λ n C + A + KᵀK)⁻¹, in float64: V are the vectors, W says who gets which.

    It is MEMIT's closed form, ΔW = (ΔᵀK)(λ n C + KᵀK)⁻¹ with Δ = W V, with the tokens around names, A, as further keys
    that call up nothing: without them the first tokens of invented names write a mixture of all facts, and recall on
    held-out texts falls from .9 to .6. The rank of the edit is that of the vectors.

    Args:
        module: path of the linear map.
        keys: of names and of prose.
        written: which vectors each name is to call up in each context.
        vectors: one for each value.
        weight: λ, how much ordinary prose counts against a name.
    """
    contexts = len(keys.at_names)
    rows, wanted = keys.at_names.flatten(0, 1).double(), written.flatten(0, 1).double().to(keys.at_names.device)
    left_side = weight * contexts * keys.covariance.double() + keys.around.double() + rows.T @ rows
    # By the size of what names give: an attention sink's few huge numbers would drown it in a mean over all.
    left_side.diagonal().add_(1e-4 * weight * contexts * rows.square().mean())
    right = torch.linalg.solve(left_side, rows.T @ wanted).T
    return LowRankEdit(module, vectors.float(), right.float())
