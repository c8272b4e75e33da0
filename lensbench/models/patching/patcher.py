"""The patcher of a model: what methods ask for patched passes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel, TokenScores
from lensbench.models.memory import RowMemory
from lensbench.models.patching.generation import Generation, Sharing, fastest_sharing
from lensbench.models.patching.modes import fastest_mode
from lensbench.models.patching.passes import Mode, PatchedPass, Prompt

# How many prompts are kept: methods that patch items' own sources have one an item.
PROMPTS = 32


class Patcher:
    """Patched passes of one model: proves the mode once, keeps prompts, and computes identical rows once."""

    def __init__(self, model: LanguageModel, mode: Mode | None = None) -> None:
        self.model = model
        self.mode = mode
        self.sharing: Sharing | None = None
        self._passes: dict[Prompt, PatchedPass] = {}
        self._memory = RowMemory()

    def score(
        self,
        prompt: Prompt,
        vectors: Float[Tensor, "row d_model"],
        target_layers: Int[Tensor, " row"],
        token_ids: Sequence[int],
    ) -> TokenScores:
        """Patch each vector at its target layer and score the asked tokens as the next word.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)

        def compute(rows: Tensor) -> TokenScores:
            final = passes.final_residuals(rows[:, 1:], rows[:, 0].round().long())
            return self.model.score_tokens(final, token_ids)

        keyed = _keyed(vectors, target_layers)
        return self._memory.answer((prompt, tuple(token_ids)), keyed, compute)

    def generate(
        self, prompt: Prompt, vectors: Float[Tensor, "row d_model"], target_layers: Int[Tensor, " row"], steps: int
    ) -> tuple[str, ...]:
        """Patch each vector at its target layer and let the model go on for at most `steps` tokens, greedily.

        The patch acts on the prompt alone. A text ends before its first end-of-text token. Identical rows are
        generated once.

        Raises:
            LensbenchError: a vector of another width than the model's.
        """
        passes = self._pass(prompt, vectors)
        if self.sharing is None:
            self.sharing = fastest_sharing(passes)
        generation = Generation(passes, self.sharing)
        rows, place = torch.unique(_keyed(vectors, target_layers), dim=0, return_inverse=True)
        layers = rows[:, 0].round().long().tolist()  # sorted: they are the first column

        def run(batch: slice) -> Tensor:
            given = rows[batch, 1:].to(self.model.device, self.model.dtype)
            return generation.generate(given, layers[batch], steps)

        tokens = torch.cat(self.model.budget.in_batches(len(rows), lambda _: generation.rows_per_batch(steps), run))
        texts = [self.model.tokens.decode(row, self.model.end_ids) for row in tokens.tolist()]
        return tuple(texts[i] for i in place.tolist())

    def _pass(self, prompt: Prompt, vectors: Tensor) -> PatchedPass:
        if vectors.shape[1] != self.model.d_model:
            raise LensbenchError(
                f"a vector of width {vectors.shape[1]} cannot be patched into {self.model.name} (width "
                f"{self.model.d_model}); choose a verbalizer of the target's width"
            )
        if self.mode is None:
            self.mode = fastest_mode(self.model, prompt)
        passes = self._passes.pop(prompt, None) or PatchedPass(self.model, prompt, self.mode)
        self._passes[prompt] = passes
        if len(self._passes) > PROMPTS:
            self._passes.pop(next(iter(self._passes)))  # asked for longest ago
        return passes


def _keyed(vectors: Tensor, target_layers: Tensor) -> Tensor:
    """Put each row's target layer before its vector: rows that are equal in both are computed once."""
    return torch.cat([target_layers[:, None].to(vectors), vectors], dim=1)


def patcher_of(model: LanguageModel) -> Patcher:
    """Return the one patcher of a model, so that its proof and its memory are shared by all methods."""
    # Kept by the model itself: a table of models would keep them alive.
    kept: Patcher = model.companions.setdefault("patcher", Patcher(model))
    return kept
