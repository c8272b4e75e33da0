"""The same architecture with random weights: what its activations tell, the text and the architecture tell."""

import copy
from typing import Any

import torch

from lensbench.errors import NotApplicableError
from lensbench.models.budget import is_out_of_memory
from lensbench.models.language_model import LanguageModel, weights_of


def with_random_weights(model: LanguageModel, seed: int) -> LanguageModel:
    """Return a model of the same configuration, as its architecture initialises it; made once for a model and seed.

    It has the tokenizer, precision, device and memory budget of the model.

    Raises:
        NotApplicableError: the model is spread over devices, or a second one of its size does not fit beside it.
    """
    made: dict[int, LanguageModel] = model.companions.setdefault("random_weights", {})
    if seed not in made:
        made[seed] = _make(model, seed)
    return made[seed]


def _make(model: LanguageModel, seed: int) -> LanguageModel:
    if len({weight.device for weight in weights_of(model.module).values()}) > 1:
        raise NotApplicableError(f"{model.name} is spread over devices: there is no room for another of its size")
    kind: Any = type(model.module)
    config = copy.deepcopy(model.module.config)
    on_gpu = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=on_gpu), torch.device(model.device):
            torch.manual_seed(seed)
            module = kind._from_config(config, dtype=model.dtype)
        made = LanguageModel(module, model.tokens, f"{model.name} with random weights", model.parts.paths)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NotApplicableError(f"a second model of the size of {model.name} does not fit into memory") from None
    made.budget = model.budget
    return made
