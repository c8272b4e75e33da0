"""Lenses as folders in the format of the tuned-lens package: read and written, and tied to the head they are for.

Such a folder holds `config.json` and `params.pt`, the state of one linear module a layer: `"{i}.weight"` [d_model,
d_model] and `"{i}.bias"` [d_model], applied as U(N(h + W h + b)). Its index i is the input of block i: our layer i.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.architecture import checksum, weights_of
from lensbench.models.hub import HUB, hub_folder, is_pinned
from lensbench.models.language_model import LanguageModel
from lensbench.models.quiet import quiet_libraries
from lensbench.models.sources import read_table
from lensbench.utils.cache import atomic_folder
from lensbench.utils.foreign import reading

LOG = logging.getLogger("lensbench")

SPACE = "AlignmentResearch/tuned-lens"
CONFIG, PARAMS = "config.json", "params.pt"
LENS_TYPE = "linear_tuned_lens"
# Where config.json holds what we add; the tuned-lens package passes over keys that it does not know.
OURS = "lensbench"
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelIdentity:
    """The model that a lens is for, as far as a checkpoint can name it.

    Attributes:
        name: as the user wrote it.
        revision: the Hub commit, if any.
        n_layers: L.
        d_model: the residual's width.
        dtype: what its weights are loaded in.
        head: sha256 of the final norm's and the head's weights, taken as float32: any one change shows.
        unembed_hash: what the tuned-lens package calls the head by, a hash of an abbreviated print: equal for heads
            that differ almost everywhere. None for a head without a plain weight.
        offline: whether the Hub must not be asked.
    """

    name: str
    revision: str | None
    n_layers: int
    d_model: int
    dtype: str
    head: str
    unembed_hash: str | None
    offline: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """The translators of layers 0 to L - 1.

    Attributes:
        weight: what is added to the identity.
        bias: the offsets.
        made_by: how they were made, as plain values.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    made_by: Mapping[str, Any] = field(default_factory=dict)


def identify_model(model: LanguageModel) -> ModelIdentity:
    """Return how checkpoints name a model.

    Raises:
        LensbenchError: its head is not a module of its own.
    """
    head: Any = model.module.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise LensbenchError(f"{model.name} has no head of its own (get_output_embeddings): no lens can be tied to it")
    weights = weights_of(model.module)
    parts = {**_part(weights, model.module, head, "head"), **_part(weights, model.module, model.parts.final, "norm")}
    digest = hashlib.sha256()
    for name, tensor in sorted(parts.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {checksum(tensor.float())}".encode())
    plain = parts.get("head.weight")
    return ModelIdentity(
        name=model.name,
        revision=model.revision,
        n_layers=model.n_layers,
        d_model=model.d_model,
        dtype=str(model.dtype).removeprefix("torch."),
        head=digest.hexdigest(),
        unembed_hash=_abbreviated(plain) if plain is not None and plain.is_floating_point() else None,
        offline=model.offline,
    )


def _part(weights: Mapping[str, Tensor], module: nn.Module, part: nn.Module, called: str) -> dict[str, Tensor]:
    """Return a part's weights, under names that do not depend on where the model keeps it."""
    path = next(name for name, one in module.named_modules() if one is part)
    return {
        f"{called}.{name.removeprefix(f'{path}.')}": tensor
        for name, tensor in weights.items()
        if name.startswith(f"{path}.")
    }


def _abbreviated(weight: Tensor) -> str:
    return hashlib.sha256(np.array_str(weight.detach().cpu().float().numpy(), precision=1).encode()).hexdigest()


def save_checkpoint(checkpoint: Checkpoint, identity: ModelIdentity, folder: Path) -> None:
    """Write a folder that `TunedLens.from_model_and_pretrained` of the tuned-lens package reads, whole or not at all.

    Beside the package's `unembed_hash`, `config.json` holds under the key `lensbench` a fingerprint of norm and head
    that can be trusted, the weights' dtype, and how the translators were made.

    Raises:
        UsageError: there is such a folder, or one cannot be made.
    """
    check_new(folder)
    settings = {
        "base_model_name_or_path": identity.name,
        "d_model": identity.d_model,
        "num_hidden_layers": identity.n_layers,
        "bias": True,
        "base_model_revision": identity.revision,
        "unembed_hash": identity.unembed_hash,
        "lens_type": LENS_TYPE,
        OURS: {"head_sha256": identity.head, "dtype": identity.dtype, **checkpoint.made_by},
    }
    state: dict[str, Tensor] = {}
    for layer, (weight, bias) in enumerate(zip(checkpoint.weight, checkpoint.bias, strict=True)):
        state |= {f"{layer}.weight": weight.detach().cpu().clone(), f"{layer}.bias": bias.detach().cpu().clone()}
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        torch.save(state, temporary / PARAMS)


def check_new(folder: Path) -> None:
    """Refuse a folder that cannot be made.

    Raises:
        UsageError: something of that name is there, or the folder above cannot be written to.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} already exists; give the name of a new folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be made: {above} is not a folder that can be written to; give another place")


def read_checkpoint(given: str, identity: ModelIdentity) -> Checkpoint:
    """Read translators, and refuse those of another model.

    Args:
        given: a folder; `hub:MODEL_ID` for the lens of a Hub model in the Hub space AlignmentResearch/tuned-lens; or
            `hub:ORG/NAME@COMMIT` for the lens in a repository of its own.
        identity: the model that they are to be used on.

    Raises:
        UsageError: no such folder, a file that is broken or incomplete, translators of another shape, or a
            fingerprint of another head.
        LensbenchError: the Hub was not reached.
    """
    config, params = _files(given, offline=identity.offline)
    settings = _settings(config)
    _require_shape(given, settings, identity)
    ours = settings.get(OURS)
    require_head(given, ours if isinstance(ours, dict) else {}, settings, identity)
    weight, bias = _translators(params, identity)
    return Checkpoint(weight, bias, ours if isinstance(ours, dict) else {})


def _files(given: str, *, offline: bool) -> tuple[Path, Path]:
    if not isinstance(given, str) or not given:
        raise UsageError(f"checkpoint {given!r}: expected a folder, or {HUB}MODEL_ID")
    if is_pinned(given):
        there = hub_folder(given, ((CONFIG, PARAMS),), offline=offline)
        return there / CONFIG, there / PARAMS
    if given.startswith(HUB):
        name = given.removeprefix(HUB)
        if not _MODEL_ID.fullmatch(name):
            raise UsageError(f"checkpoint {given!r}: expected {HUB}MODEL_ID, such as {HUB}gpt2")
        return _download(name, CONFIG, offline=offline), _download(name, PARAMS, offline=offline)
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UsageError(f"checkpoint {given}: no such folder; give a tuned-lens checkpoint's, or {HUB}MODEL_ID")
    for file in (CONFIG, PARAMS):
        if not (folder / file).is_file():
            raise UsageError(f"checkpoint {given} holds no {file}; expected {CONFIG} and {PARAMS}")
    return folder / CONFIG, folder / PARAMS


def _download(name: str, file: str, *, offline: bool) -> Path:
    quiet_libraries()
    from huggingface_hub import errors, hf_hub_download

    place = f"lens/{name}/{file}"
    try:
        return Path(hf_hub_download(SPACE, place, repo_type="space", local_files_only=offline))
    except errors.LocalEntryNotFoundError:
        raise LensbenchError(
            f"checkpoint {HUB}{name} has not been downloaded before and the Hub was not reached; connect and leave out "
            "--offline, or give a local folder"
        ) from None
    except errors.EntryNotFoundError:
        raise UsageError(
            f"checkpoint {HUB}{name}: the Hub space {SPACE} has no {place}; give a model that it has a lens of, or fit "
            f"one: lensbench fit tuned_lens --model {name} --out FOLDER"
        ) from None
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LensbenchError(
            f"checkpoint {HUB}{name} could not be fetched from the Hub: {reason}; try again, or give a local folder"
        ) from None


def _settings(path: Path) -> dict[str, Any]:
    settings = read_table(path, "get the checkpoint again", UsageError)
    for key in ("d_model", "num_hidden_layers"):
        if type(settings.get(key)) is not int:
            raise UsageError(f"{path} has no whole number {key}; expected the config.json of a tuned-lens checkpoint")
    if settings.get("lens_type", LENS_TYPE) != LENS_TYPE:
        raise UsageError(f"{path} is of a lens of type {settings['lens_type']!r}; expected {LENS_TYPE!r}")
    if settings.get("bias", True) is not True:
        raise UsageError(f"{path} is of a lens without bias; expected one with")
    return settings


def _require_shape(given: str, settings: Mapping[str, Any], identity: ModelIdentity) -> None:
    layers, width = settings["num_hidden_layers"], settings["d_model"]
    if (layers, width) != (identity.n_layers, identity.d_model):
        raise UsageError(
            f"checkpoint {given} is for {settings.get('base_model_name_or_path', 'a model')} with {layers} blocks of "
            f"width {width}; {identity.name} has {identity.n_layers} of width {identity.d_model}: give this model's "
            "own lens"
        )


def require_head(given: str, ours: Mapping[str, Any], settings: Mapping[str, Any], identity: ModelIdentity) -> None:
    """Refuse translators whose fingerprint is another head's; say where there is none that can be trusted."""
    made_for = ours.get("head_sha256")
    if made_for is not None:
        if made_for != identity.head:
            raise UsageError(
                f"checkpoint {given} was made for another norm and head ({str(made_for)[:12]}, "
                f"{settings.get('base_model_name_or_path')} in {ours.get('dtype')}) than those of {identity.name} in "
                f"{identity.dtype} ({identity.head[:12]}): load that model with that --dtype, or fit a lens to this one"
            )
        return
    theirs = settings.get("unembed_hash")
    if theirs is not None and theirs != identity.unembed_hash:
        LOG.warning(
            "checkpoint %s: its unembed_hash is not that of %s, so it may be for another head; it says that it is for "
            "%s",
            *(given, identity.name, settings.get("base_model_name_or_path")),
        )
        return
    LOG.info("checkpoint %s has no fingerprint that proves whose head it is for", given)


def _translators(path: Path, identity: ModelIdentity) -> tuple[Tensor, Tensor]:
    with reading(path, "expected weights that torch loads; get the checkpoint again", UsageError):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds {type(state).__name__}, expected a state of tensors; get the checkpoint again")
    d = identity.d_model
    shapes = {
        f"{i}.{part}": shape for i in range(identity.n_layers) for part, shape in (("weight", (d, d)), ("bias", (d,)))
    }
    wrong = [f"no {key}" for key in shapes if key not in state] + [f"{key!r} too" for key in state if key not in shapes]
    if wrong:
        last = identity.n_layers - 1
        raise UsageError(f"{path} has {wrong[0]}; expected weight and bias of the layers 0 to {last}")
    for key, shape in shapes.items():
        value = state[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
            found = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"{path}: {key} is {found}, expected {shape} of floating-point numbers")
        if not bool(value.isfinite().all()):
            raise UsageError(f"{path}: {key} holds numbers that are not finite; get the checkpoint again")
    weight, bias = (
        torch.stack([state[f"{i}.{part}"].float() for i in range(identity.n_layers)]) for part in ("weight", "bias")
    )
    return weight, bias
