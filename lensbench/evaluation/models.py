"""The models of a run, loaded: the target, the verbalizer, and those that baselines read in the target's place."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from lensbench.baselines.spec import Baseline
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig, needed
from lensbench.harness.context import ControlModels, RunContext
from lensbench.models.activations import ResidualCache
from lensbench.models.architecture import ModulePaths
from lensbench.models.corpus import Corpus, lens_cache
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, count_layers, load_source
from lensbench.models.memory import Budget, free_memory
from lensbench.models.proofs import keep_proofs
from lensbench.models.sources import ModelSource, planted_facts, resolve, split_edits
from lensbench.models.tokens import same_tokenizer
from lensbench.utils.cache import RESIDUALS, cache_root
from lensbench.utils.layer_spec import parse_layers


def load_context(config: RunConfig, baselines: Iterable[Baseline]) -> RunContext:
    """Load every model that a run needs, each once; the layers are checked first, on the configuration alone.

    Raises:
        UsageError: layers that the target lacks, or a model that cannot stand in its place.
        LensbenchError: a model that cannot be loaded.
    """
    paths = ModulePaths(**config.module_paths) if config.module_paths else None
    how = Loading(
        config.device, config.dtype, config.revision, config.offline, config.chat_template, paths, config.device_map,
        config.model_args or {},
    )  # fmt: skip
    models = _Models(how)
    source = models.find(config.model, how)
    layers = parse_layers(config.layers, count_layers(source))
    model = models.load(source, how)
    # Revision, module paths and model arguments are those of the target, and of the same model without its edit.
    plain = replace(how, revision=None, paths=None, model_args={})

    def load(name: str) -> LanguageModel:
        one = how if split_edits(name)[0] == split_edits(config.model)[0] else plain
        return models.load(models.find(name, one), one)

    verbalizer = model
    if config.verbalizer and config.verbalizer != config.model:
        verbalizer = load(config.verbalizer)
    names, found = needed(baselines, config.control_models()), {}
    for role, name in names.items():
        found[role] = load(name)
        check_control_model(role, found[role], model)
    memory = config.memory if isinstance(config.memory, int) else free_memory(model.device)
    for loaded in {model, verbalizer, *found.values()}:
        loaded.budget = Budget(memory, loaded.device)
        keep_proofs(loaded)
    facts = planted_facts(names["twin"]) if "twin" in names else {}
    return RunContext(
        model, verbalizer, Corpus(model, cache=lens_cache()), layers, config.seed, config.limit,
        ResidualCache(cache_root() / RESIDUALS), ControlModels(found, facts, names), score=config.score,
    )  # fmt: skip


def check_control_model(role: str, model: LanguageModel, target: LanguageModel) -> None:
    """Refuse a model that cannot stand in the target's place.

    Raises:
        UsageError: another tokenizer; for a model whose activations are read, another depth or width.
    """
    given = f"--{role} {model.name}"
    if not same_tokenizer(model.tokens, target.tokens):
        raise UsageError(f"{given} does not have the tokenizer of {target.name}; give a model that has it")
    if role == "reference":
        return
    for what in ("n_layers", "d_model"):
        its, own = getattr(model, what), getattr(target, what)
        if its != own:
            word = {"n_layers": "layers", "d_model": "dimensions"}[what]
            raise UsageError(f"{given} has {its} {word}, {target.name} has {own}; give a model of the same size")


class _Models:
    """Models by where they come from, so that the same model is asked only once."""

    def __init__(self, how: Loading) -> None:
        self._device: torch.device = how.torch_device()
        self._loaded: dict[ModelSource, LanguageModel] = {}

    def find(self, name: str, how: Loading) -> ModelSource:
        return resolve(name, revision=how.revision, offline=how.offline)

    def load(self, source: ModelSource, how: Loading) -> LanguageModel:
        if source not in self._loaded:
            model = load_source(source, how, self._device)
            # The same weights under another name are no other model.
            same = (one for one in self._loaded.values() if _runs_as(one) == _runs_as(model))
            self._loaded[source] = next(same, model)
        return self._loaded[source]


def _runs_as(model: LanguageModel) -> tuple[str, str]:
    return model.fingerprint, model.attention
