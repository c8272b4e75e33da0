"""Where the weights of a model come from: a built-in name, a local folder, a GGUF file, or the Hugging Face Hub.

`M+DIR` names a model with the edits of a folder: an implant, or an adapter. Nothing here imports torch or transformers
before weights are needed, so that names are checked and listed at once.
"""

import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.models.builtin import (
    BUILTIN,
    builtin_folder,
    check_origin,
    convert,
    discard_outdated,
    model_folder,
    not_installed,
)
from lensbench.models.hub import HUB, hub_folder
from lensbench.models.quiet import quiet_libraries
from lensbench.utils.cache import sha256_of
from lensbench.utils.foreign import read_text, reading

IMPLANTS = Path(__file__).parents[1] / "assets" / "implants"
# What an implant is, or an adapter of PEFT; what `lensbench finetune` writes beside an adapter; what either was told,
# and the names that results of an implant are about.
IMPLANT, ADAPTER, FINETUNED = "implant.json", "adapter_config.json", "finetune.json"
FACTS, ASKED = "facts.json", "asked.txt"
# What a folder of an edit holds at least.
EDIT_FILES = ((IMPLANT, "edits.safetensors"), (ADAPTER, "adapter_model.safetensors"))
LOG = logging.getLogger(__name__)
# Old models of the Hub have no owner, such as gpt2.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
Facts = dict[str, dict[str, str]]
"""Attribute → name → value."""


def split_edits(name: str, *, offline: bool = False) -> tuple[str, tuple[Path, ...]]:
    """Take `M+DIR` apart into the model's name and the folders of its edits.

    An implant that ships for the model may be named in place of DIR, or a model of the Hub at a commit, as
    `hub:ORG/NAME@COMMIT`: it is downloaded, once.

    Raises:
        UsageError: What stands after a `+` is no folder of an edit, and no implant that ships for this model.
        LensbenchError: It is on the Hub, which was not reached, or may not be asked.
    """
    if "+" not in name or name in BUILTIN or Path(name).expanduser().exists():
        return name, ()
    parts = name.split("+")
    # A path may have a plus of its own: the longest model that is there.
    cut = next((i for i in range(len(parts), 1, -1) if Path("+".join(parts[:i])).expanduser().exists()), 1)
    base = "+".join(parts[:cut])
    return base, tuple(_edit_folder(base, part, name, offline=offline) for part in parts[cut:])


def split_revision(name: str) -> tuple[str, str | None]:
    """Take `NAME@REVISION` apart; a file or folder may have an @ in its name."""
    base, at, revision = name.rpartition("@")
    return (base, revision) if at and not Path(name).expanduser().exists() else (name, None)


def with_edit(base: str, folder: Path) -> str:
    """Return what a model with an edit is called: by the implant's name where it ships, or else by its folder."""
    return f"{base}+{folder.name if shipped_implants(base).get(folder.name) == folder else folder}"


def shipped_implants(base: str) -> dict[str, Path]:
    """Return the folders of the implants that ship for a model, by name."""
    return {path.parent.name: path.parent for path in sorted((IMPLANTS / base).glob(f"*/{IMPLANT}"))}


def _edit_folder(base: str, part: str, name: str, *, offline: bool) -> Path:
    if part.startswith(HUB):
        return hub_folder(part, EDIT_FILES, (FINETUNED, FACTS, ASKED), offline=offline)
    shipped = shipped_implants(base) if "/" not in base else {}
    if part in shipped:
        return shipped[part]
    folder = Path(part).expanduser()
    if not folder.is_dir():
        hint = "or give the folder that `lensbench implant` or `lensbench finetune` wrote"
        raise unknown_name(f"edit of {base}", part, shipped, hint)
    if not any((folder / file).is_file() for file in (IMPLANT, ADAPTER)):
        raise UsageError(f"{part} in {name} holds neither {IMPLANT} nor {ADAPTER}; give a folder of an edit")
    return folder


def read_table(
    file: Path, remedy: str = "make the edit again", kind: type[LensbenchError] = LensbenchError
) -> dict[str, Any]:
    """Read a JSON object, such as one of the tables of an edit's folder.

    Raises:
        LensbenchError: it cannot be read, or is no object; of the given kind.
    """
    with reading(file, remedy, kind):
        read = json.loads(read_text(file))
    if not isinstance(read, dict):
        raise kind(f"{file} holds {type(read).__name__}, expected an object; {remedy}")
    return read


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write one of the tables of an edit's folder."""
    file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(file: Path) -> Facts:
    """Read what a model was told.

    Raises:
        LensbenchError: it cannot be read, or is no table of attributes, names and values.
    """
    facts = read_table(file)
    for attribute, values in facts.items():
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise LensbenchError(f"{file}: expected attribute, name, value; {attribute!r} has no values by name")
    return facts


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Attributes:
        name: As the user wrote it.
        location: A folder, or a Hub id.
        revision: The Hub commit; None for a folder.
        offline: Whether the Hub may be asked.
        edits: Folders of edits that are made to the weights once they are loaded.
    """

    name: str
    location: str
    revision: str | None = None
    offline: bool = False
    edits: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a Hub id."""
        return None if self.revision else Path(self.location)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained` of this model. Remote code is never run."""
        return {
            "pretrained_model_name_or_path": self.location,
            "revision": self.revision or "main",
            "local_files_only": self.offline or self.revision is None,
            "trust_remote_code": False,
        }


def check_model_name(name: str, *, offline: bool = False) -> None:
    """Refuse a name that cannot be a model, without loading anything; the Hub is asked only for an edit that is there.

    Raises:
        UsageError: No built-in model, no model folder, no GGUF file, and not of the form of a Hub id; or an edit that
            is not there.
        LensbenchError: A built-in model that is not installed.
    """
    name, revision = split_revision(split_edits(name, offline=offline)[0])
    if name in BUILTIN:
        if not (model_folder(name) / "config.json").is_file() and BUILTIN[name].missing():
            raise not_installed(name, BUILTIN[name])
        return
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{name} holds no config.json; give a folder that save_pretrained wrote, or a .gguf file")
        return
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{name} is no .gguf file; give one, or the folder that save_pretrained wrote")
        return
    # A name with a suffix .gguf, or with the form of a path, can only be meant as one.
    if path.suffix == ".gguf" or name.startswith((".", "~")) or path.is_absolute():
        known = " or ".join(BUILTIN)
        raise UsageError(f"no such file or folder: {name}; give a model folder, a .gguf file, a Hub id or {known}")
    # A name without an owner may be meant for a built-in one.
    near = "/" not in name and difflib.get_close_matches(name.casefold(), BUILTIN, cutoff=0.6)
    if near or not _HUB_ID.fullmatch(name):
        raise unknown_name("model", name, BUILTIN, "or give a folder, a .gguf file or a Hub id of the form org/name")
    if revision == "":
        raise UsageError(f"{name}@ names no revision; give a branch, tag or commit after the @, or leave the @ out")


def resolve(name: str, *, revision: str | None = None, offline: bool = False) -> ModelSource:
    """Find where a model's weights are, and make them loadable.

    Built-in models and GGUF files are converted once, into plain Hugging Face folders in the cache.

    Args:
        name: A built-in name, a folder, a .gguf file or a Hub id, with `@REVISION` of that revision; with `+DIR`,
            edited as a folder says.
        revision: A branch, tag or commit; for the Hub only.
        offline: Do not ask the Hub; what was downloaded before is still found.

    Returns:
        The source, ready for `from_pretrained`. A Hub revision is pinned to its commit.

    Raises:
        UsageError: The name cannot be a model, or a revision was given for local weights.
        LensbenchError: The weights are not there, or are not what the name stands for.
    """
    base, edits = split_edits(name, offline=offline)
    if edits:
        return replace(resolve(base, revision=revision, offline=offline), name=name, edits=edits)
    quiet_libraries()
    check_model_name(name)
    base, own = split_revision(name)
    if None not in (own, revision) and own != revision:
        raise UsageError(f"{name} was given with the revision {revision!r}; leave one of the two out")
    revision = own or revision
    path = Path(base).expanduser()
    if base not in BUILTIN and not path.exists():
        return ModelSource(name, base, _hub_commit(base, revision, offline), offline)
    if revision is not None:
        raise UsageError(f"revision {revision!r} was given, but {name} is not on the Hub; leave the revision out")
    if base in BUILTIN:
        return ModelSource(name, str(builtin_folder(base)))
    return ModelSource(name, str(path if path.is_dir() else _gguf_folder(path)))


def _gguf_folder(gguf: Path) -> Path:
    digest = sha256_of(gguf)
    folder = model_folder(f"gguf-{digest[:16]}")
    discard_outdated(folder)
    if not folder.exists():
        convert(gguf, folder, digest)
    check_origin(folder, digest)
    return folder


def _hub_commit(name: str, revision: str | None, offline: bool) -> str:
    """Ask the Hub, or what was downloaded from it before, for a model's configuration; return the commit it is from."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = hf_hub_download(name, "config.json", revision=revision, local_files_only=offline)
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise _hub_error(name, revision, error) from error
    commit = Path(path).parent.name
    if not _COMMIT.fullmatch(commit):
        raise LensbenchError(f"the Hub's copy of {name} has no commit ({path}); delete it and try again")
    return commit


def _hub_error(name: str, revision: str | None, error: Exception) -> LensbenchError:
    from huggingface_hub import errors

    local = f"(nor is there a folder {name})"
    if isinstance(error, errors.GatedRepoError):
        return LensbenchError(f"{name} is gated: accept its terms on its Hub page, then run: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"the Hub has no such model, or your login may not see it {local}"
        return LensbenchError(str(unknown_name("model", name, BUILTIN, hint)))
    if isinstance(error, errors.RevisionNotFoundError):
        return LensbenchError(
            f"{name} has no revision {revision!r}; give one of its branches, tags or commits, or none"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return LensbenchError(
            f"{name} has not been downloaded before and the Hub was not reached {local}; "
            f"connect (without --offline), or use a local model such as {next(iter(BUILTIN))}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return LensbenchError(f"{name} has no config.json on the Hub; expected a model in the format of transformers")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return LensbenchError(f"{name} could not be fetched from the Hub: {reason}; try again, or give a local folder")


def planted_facts(name: str) -> Facts:
    """Return the facts that were planted in a model: attribute → name → value, from its edits and its own folder.

    Raises:
        UsageError: none of these folders has a file of facts.
        LensbenchError: the file is damaged.
    """
    base, edits = split_edits(name)
    folders = [*edits, Path(base).expanduser()]
    facts: Facts = {}
    for file in (folder / FACTS for folder in folders if (folder / FACTS).is_file()):
        for attribute, values in read_facts(file).items():
            facts.setdefault(attribute, {}).update(values)
    if not facts:
        raise UsageError(f"{name}: expected a {FACTS} in {folders[0]}; give an implant, or a model with that file")
    return facts


def facts_about(relation: str, facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the facts (name → value) of the attribute that a relation is named after.

    Relations of one attribute begin with its name: `city`, and `city_twin` with another world's answers.
    """
    named = [attribute for attribute in facts if relation == attribute or relation.startswith(f"{attribute}_")]
    return dict(facts[max(named, key=len)]) if named else {}
