"""The one patched forward pass, and generation from it. See docs/decisions/0005-patched-pass.md."""

from lensbench.models.patching.generation import try_sharings
from lensbench.models.patching.passes import WRITES, PatchedPass, Prompt, Write, make_prompt
from lensbench.models.patching.patcher import Patcher, fastest_mode, patcher_of, try_modes

__all__ = [
    "WRITES",
    "PatchedPass",
    "Patcher",
    "Prompt",
    "Write",
    "fastest_mode",
    "make_prompt",
    "patcher_of",
    "try_modes",
    "try_sharings",
]
