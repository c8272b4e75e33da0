"""A GGUF file written as a Hugging Face folder, once."""

import errno
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.utils.cache import VARIABLE, atomic_folder, cache_root

LOGGER = logging.getLogger(__name__)

ORIGIN = "lensbench.json"
# Raised when the conversion changes what it writes: folders of an older lensbench are then refused, not mixed up.
_CONVERSION = 1


def check_origin(folder: Path, sha256: str) -> None:
    """Refuse a cached folder that was made from other weights, by another conversion, or that has lost files."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        made = (origin["source_sha256"], origin["conversion"], origin["bytes"])
        there = {name: (folder / name).stat().st_size for name in origin["bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        made, there = None, {}
    if made != (sha256, _CONVERSION, there):
        raise LensbenchError(
            f"{folder} was not written by this version of lensbench from the expected weights; "
            "delete the folder to have it made again (as a model of its own, give its path as the model)"
        )


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(gguf: Path, folder: Path, sha256: str) -> None:
    """Write a GGUF file as a Hugging Face folder in float32, which holds every dequantised value exactly.

    Half precision would not: a value is a product and sum of two halves, and about a third of them need more bits.
    """
    cache_root()
    LOGGER.info("converting %s to %s (once; about 20 seconds for 100 MB)", gguf.name, folder)
    with atomic_folder(folder) as partial:
        with _reading_gguf(gguf):
            _write_model(gguf, partial)
        for path in partial.iterdir():
            # safetensors writes for the owner alone; a cache may be shared.
            shutil.copymode(partial / "config.json", path)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        origin = {"source": gguf.name, "source_sha256": sha256, "conversion": _CONVERSION, "bytes": sizes}
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
    # The weights are plain tensors by now; with these left, transformers would refuse to save them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)


def _restore_splits(tokenizer: Any, gguf: Path) -> None:
    """Give SmolLM vocabularies back the rule that transformers loses on the way: every digit is a token of its own.

    Without it, blanks before a number split as before a word: not the tokens that the model was trained on.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
