"""Jacobian lenses as `.pt` files in their published form: read and written.

Such a file holds `J`, a [d_model, d_model] in half precision for each index i of a block: it carries the output of
block i, our layer i + 1, to the target layer. Beside it stand `n_prompts`, `source_layers`, `d_model`, and in some
files `metadata`. Ours have a key `lensbench` too: a fingerprint of the model's norm and head, and J of layer 0, the
output of the embeddings, which the published form has no place for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.tuned_lens_files import OURS, ModelIdentity, check_new, require_head
from lensbench.utils.cache import atomic_folder
from lensbench.utils.foreign import reading

FILE = "jacobian_lens.pt"
EMBEDDINGS, TARGET = "embeddings", "target_layer"


def save_jacobians(
    weight: Float[Tensor, "layer d_model d_model"], made_by: Mapping[str, Any], identity: ModelIdentity, folder: Path
) -> None:
    """Write the J of layers 0 to target - 1 as `jacobian_lens.pt` into a new folder, whole or not at all.

    Args:
        weight: J.
        made_by: what `metadata` says beside the model; `n_prompts` among it.
        identity: the model that it is of.
        folder: the folder to make.

    Raises:
        UsageError: there is such a folder, or one cannot be made.
        LensbenchError: a number is too large for half precision.
    """
    check_new(folder)
    halves = weight.detach().half().cpu()
    if not bool(halves.isfinite().all()):
        raise LensbenchError("J holds numbers that half precision cannot hold, and files of Jacobian lenses are in it")
    content = {
        "J": {block: one.clone() for block, one in enumerate(halves[1:])},
        "n_prompts": made_by["n_prompts"],
        "source_layers": list(range(len(weight) - 1)),
        "d_model": identity.d_model,
        "metadata": {
            "model_name": identity.name,
            "model_revision": identity.revision,
            TARGET: len(weight) - 1,  # of a block, as all indices here
            **made_by,
        },
        OURS: {"head_sha256": identity.head, "dtype": identity.dtype, EMBEDDINGS: halves[0].clone()},
    }
    with atomic_folder(folder) as temporary:
        torch.save(content, temporary / FILE)


def read_jacobians(path: Path, identity: ModelIdentity) -> Float[Tensor, "layer d_model d_model"]:
    """Read the J of layers 0 to the last that the file has; layer 0 is the identity where the file does not have it.

    Raises:
        UsageError: no such file, one that is broken or of another form, or of another model.
    """
    content = _content(path)
    weights, metadata, ours, d = content["J"], content["metadata"], content[OURS], identity.d_model
    target = metadata.get(TARGET, len(weights))
    if sorted(weights) != list(range(len(weights))) or len(weights) != target or not 1 <= target < identity.n_layers:
        raise UsageError(
            f"{path} has J of the blocks {_listed(weights)}; expected all from 0 to the one before its target, at most "
            f"{identity.n_layers - 2} for {identity.name}"
        )
    require_head(str(path), ours, {"base_model_name_or_path": metadata.get("model_name")}, identity)
    found = [ours.get(EMBEDDINGS, torch.eye(d)), *(weights[block] for block in range(len(weights)))]
    for block, one in enumerate(found, start=-1):
        if not isinstance(one, Tensor) or tuple(one.shape) != (d, d) or not one.is_floating_point():
            shape = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise UsageError(
                f"{path}: J of block {block} is {shape}, expected {(d, d)}; give {identity.name}'s own lens"
            )
        if not bool(one.isfinite().all()):
            raise UsageError(f"{path}: J of block {block} holds numbers that are not finite; get the file again")
    return torch.stack([one.float() for one in found])


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a Jacobian lens, such as {FILE}")
    with reading(path, "expected a Jacobian lens that torch loads; get the file again", UsageError):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("J"), dict):
        raise UsageError(f"{path} holds no dictionary J of matrices; expected the published form of a Jacobian lens")
    if not all(type(block) is int for block in content["J"]):
        raise UsageError(f"{path}: J has the keys {_listed(content['J'])}; expected the numbers of blocks")
    for key in ("metadata", OURS):
        if not isinstance(content.setdefault(key, {}), dict):
            raise UsageError(f"{path}: {key} is no dictionary; get the file again")
    return content


def _listed(keys: Mapping[Any, Any]) -> str:
    """Return some keys in a line."""
    names = [str(key) for key in keys]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "none"
