"""The models of a run, loaded: the target, the verbalizer, and those that baselines read in the target's place."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from lensbench.baselines.spec import Baseline
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.control_models import needed
from lensbench.evaluation.given import GivenModel, edits_of, name_of
from lensbench.harness.context import ControlModels, RunContext
from lensbench.models.activations import ResidualCache
from lensbench.models.architecture import ModulePaths
from lensbench.models.corpus import Corpus, lens_cache
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, count_layers, load_source
from lensbench.models.memory import Budget, free_memory
from lensbench.models.proofs import keep_proofs
from lensbench.models.sources import ModelSource, planted_facts, resolve
from lensbench.models.tokens import same_tokenizer
from lensbench.utils.cache import RESIDUALS, cache_root
from lensbench.utils.layer_spec import parse_layers


def load_context(config: RunConfig, baselines: Iterable[Baseline]) -> RunContext:
    """Load every model that a run needs, each once; the layers are checked first, on the configuration alone.

    Raises:
        UsageError: layers that the target lacks, or a model that cannot stand in its place.
        LensbenchError: a model that cannot be loaded.
    """
    _check_loaded(config)
    paths = ModulePaths(**config.module_paths) if config.module_paths else None
    how = Loading(
        config.device, config.dtype, config.revision, config.offline, config.chat_template, paths, config.device_map,
        config.model_args or {},
    )  # fmt: skip
    # Revision, module paths and model arguments are those of the target, and of the same model without its edit.
    plain = replace(how, revision=None, paths=None, model_args={})
    base, _ = edits_of(config.model, offline=config.offline)

    def how_of(given: GivenModel) -> Loading:
        return how if edits_of(given, offline=config.offline)[0] == base else plain

    models, given = _Models(how), needed(baselines, config.control_models())
    names = {role: name_of(one) for role, one in given.items()}
    # Every name is looked up before the first weight is read.
    sources = {role: models.find(one, how_of(one)) for role, one in given.items()}
    source = models.find(config.model, how)
    reads = models.find(config.verbalizer, how_of(config.verbalizer)) if config.verbalizer else source
    layers = parse_layers(config.layers, _depth(source))
    model = models.load(source, how)
    verbalizer = models.load(reads, how_of(config.verbalizer or config.model))
    found = {}
    for role, one in sources.items():
        found[role] = models.load(one, how_of(given[role]))
        check_control_model(role, found[role], model)
    memory = config.memory if isinstance(config.memory, int) else free_memory(model.device)
    for loaded in {model, verbalizer, *found.values()}:
        loaded.budget = Budget(memory, loaded.device)
        keep_proofs(loaded)
    facts = planted_facts(names["twin"]) if "twin" in names else {}
    return RunContext(
        model, verbalizer, Corpus(model, cache=lens_cache()), layers, config.seed, config.limit,
        ResidualCache(cache_root() / RESIDUALS), ControlModels(found, facts, names), score=config.score,
        whole_answers=config.whole_answers,
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


def depth_of(config: RunConfig) -> int:
    """Return how many layers the target has, without its weights.

    Raises:
        UsageError: a name that cannot be a model.
        LensbenchError: a configuration that cannot be read.
    """
    model = config.model
    return _depth(resolve(model, revision=config.revision, offline=config.offline) if isinstance(model, str) else model)


def _depth(source: ModelSource | LanguageModel) -> int:
    return count_layers(source) if isinstance(source, ModelSource) else source.n_layers


class _Models:
    """Models by where they come from, so that the same model is asked only once."""

    def __init__(self, how: Loading) -> None:
        self._device: torch.device = how.torch_device()
        self._loaded: dict[ModelSource | LanguageModel, LanguageModel] = {}

    def find(self, given: GivenModel, how: Loading) -> ModelSource | LanguageModel:
        if not isinstance(given, str):
            return given
        return resolve(given, revision=how.revision, offline=how.offline)

    def load(self, source: ModelSource | LanguageModel, how: Loading) -> LanguageModel:
        if source not in self._loaded:
            model = load_source(source, how, self._device) if isinstance(source, ModelSource) else source
            # The same weights under another name are no other model.
            same = (one for one in self._loaded.values() if _runs_as(one) == _runs_as(model))
            self._loaded[source] = next(same, model)
        return self._loaded[source]


def _runs_as(model: LanguageModel) -> tuple[str, str]:
    return model.fingerprint, model.attention


def _check_loaded(config: RunConfig) -> None:
    """Refuse settings that say how a target is loaded that has been loaded.

    Raises:
        UsageError: there is one.
    """
    if isinstance(config.model, str):
        return
    fields = ("revision", "module_paths", "device_map", "chat_template", "dtype", "device", "model_args")
    changed = [name for name in fields if getattr(config, name) != RunConfig.model_fields[name].default]
    if changed:
        raise UsageError(
            f"{changed[0]} = {getattr(config, changed[0])!r}, but the model {config.model.name} is given as an object, "
            "which has been loaded: leave it out, or give it to load_model"
        )
