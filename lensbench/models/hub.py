"""Folders on the Hugging Face Hub: fetched as they were at one commit, and uploaded.

`hub:ORG/NAME@COMMIT` names a folder of files for good: what is at a commit never changes, and what was fetched once is
taken from the Hub's cache without asking again. Nothing here imports torch or transformers.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.quiet import quiet_libraries
from lensbench.utils.foreign import reason_of

HUB = "hub:"
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_PINNED = re.compile(rf"hub:(?P<repo>{_REPO})@(?P<commit>[0-9a-f]{{40}})")


def is_pinned(given: str) -> bool:
    """Whether a text names files of the Hub at a commit, rightly or not: `hub:` with an `@`."""
    return given.startswith(HUB) and "@" in given


def hub_folder(given: str, needed: Sequence[Sequence[str]], more: Sequence[str] = (), *, offline: bool = False) -> Path:
    """Return the folder that holds files of the Hub at a commit; downloaded once.

    Args:
        given: `hub:ORG/NAME@COMMIT`, with all 40 digits of the commit.
        needed: groups of files; the folder is whole with all files of one group.
        more: other files, which may be missing.
        offline: take only what was downloaded before.

    Raises:
        UsageError: another form, or files that are not there.
        LensbenchError: the Hub was not reached, or refuses.
    """
    named = _PINNED.fullmatch(given)
    if named is None:
        raise UsageError(f"{given}: expected {HUB}ORG/NAME@COMMIT, with the 40 digits of the commit")
    files = [*dict.fromkeys(file for group in needed for file in group), *more]
    here = _snapshot(given, named, files, offline=True)
    if here is not None and _is_whole(here, needed):
        return here
    if offline:
        raise LensbenchError(
            f"{given} has not been downloaded before; connect and leave out --offline, or give a local folder"
        )
    there = _snapshot(given, named, files, offline=False)
    if there is None or not _is_whole(there, needed):
        wanted = " or ".join(", ".join(group) for group in needed)
        raise UsageError(f"{given} does not hold {wanted}; give a commit that does")
    return there


def _is_whole(folder: Path, needed: Sequence[Sequence[str]]) -> bool:
    return any(all((folder / file).is_file() for file in group) for group in needed)


def _snapshot(given: str, named: "re.Match[str]", files: Sequence[str], *, offline: bool) -> Path | None:
    quiet_libraries()
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                named["repo"], revision=named["commit"], allow_patterns=list(files), local_files_only=offline
            )
        )
    except errors.LocalEntryNotFoundError:
        if offline:
            return None
        raise LensbenchError(f"{given}: the Hub was not reached; connect, or give a local folder") from None
    except errors.GatedRepoError:
        raise LensbenchError(f"{given} is gated: accept its terms on its Hub page, then run: hf auth login") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise UsageError(
            f"{given}: the Hub has no such model or commit, or your login may not see it; if it is private, run: "
            "hf auth login"
        ) from None
    except (OSError, ValueError) as error:
        raise LensbenchError(
            f"{given} could not be fetched from the Hub: {reason_of(error)}; try again, or give a local folder"
        ) from None


def is_repo(name: str) -> bool:
    """Whether a text has the form of a repository's name, ORG/NAME."""
    return re.fullmatch(_REPO, name) is not None


def check_repo(to: str) -> None:
    """Refuse a name that cannot be a repository of the Hub.

    Raises:
        UsageError: not of the form ORG/NAME.
    """
    if not is_repo(to):
        raise UsageError(f"--to {to!r}: expected ORG/NAME, such as my-name/my-lens")


def upload(folder: Path, to: str, kind: str, *, public: bool = False) -> str:
    """Upload a folder into a repository of the Hub, which is made where it is missing; return the commit.

    Args:
        folder: what to upload, whole.
        to: ORG/NAME.
        kind: `model` or `dataset`.
        public: let everybody see a repository that is made, or add to one that everybody sees.

    Raises:
        UsageError: a name that cannot be a repository, or one that is public, and that was not asked for.
        LensbenchError: the Hub was not reached, or refuses.
    """
    check_repo(to)
    quiet_libraries()
    import huggingface_hub

    api: Any = huggingface_hub.HfApi(library_name="lensbench")
    try:
        if not api.repo_exists(to, repo_type=kind):
            api.create_repo(to, repo_type=kind, private=not public)
        elif not public and not api.repo_info(to, repo_type=kind).private:
            raise UsageError(f"--to {to} is there already, and everybody sees it; give --public, or another name")
        done = api.upload_folder(
            repo_id=to, repo_type=kind, folder_path=str(folder), commit_message="Upload by lensbench push"
        )
    except LensbenchError:
        raise
    except Exception as error:  # of the network, of the login, of the Hub
        raise LensbenchError(
            f"{to} could not be uploaded to the Hub: {reason_of(error)}; run `hf auth login` with a token that may "
            "write there, and try again"
        ) from None
    return str(done.oid)
