"""How much patched passes of a model may share: tried against plain passes, and the fastest that agrees is taken."""

import logging
import math
from collections.abc import Iterator

from lensbench.models.budget import is_out_of_memory
from lensbench.models.language_model import TOLERANCE, LanguageModel
from lensbench.models.patching.passes import MODES, Mode, PatchedPass, Prompt, trial_vectors

LOG = logging.getLogger("lensbench")


def agreement(model: LanguageModel, prompt: Prompt, mode: Mode) -> float:
    """Return how far a mode's logits lie from plain patched passes, relative to the largest logit.

    One row a target layer, of a fixed random vector on the scale of the prompt's own residuals there.

    Raises:
        ReplayError: the model defeats the mode.
    """
    layers = list(range(model.n_layers + 1))
    vectors = trial_vectors(model, prompt)
    reference = model.unembed(PatchedPass(model, prompt, "plain").run(vectors, layers))
    other = model.unembed(PatchedPass(model, prompt, mode).run(vectors, layers))
    return float((reference - other).abs().max()) / max(1.0, float(reference.abs().max()))


def try_modes(model: LanguageModel, prompt: Prompt) -> Iterator[tuple[Mode, float, str]]:
    """Try the modes that share something: how far each lies from plain passes, or infinity and why it is impossible."""
    for mode in MODES[:-1]:
        try:
            yield mode, agreement(model, prompt, mode), ""
        except Exception as error:  # whatever a foreign block raises when called from the middle
            if is_out_of_memory(error):
                raise
            yield mode, math.inf, str(error)


def fastest_mode(model: LanguageModel, prompt: Prompt) -> Mode:
    """Return the mode that shares most and agrees with plain passes on this model and prompt."""
    LOG.info("%s: trying what patched passes may share", model.name)
    for mode, off, reason in try_modes(model, prompt):
        if off <= TOLERANCE[model.dtype]:
            return mode
        LOG.info("%s: patched pass %s is not used (%s)", model.name, mode, reason or f"off by {off:.1e}")
    return "plain"
