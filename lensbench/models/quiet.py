"""Libraries that would speak on the terminal, or to their makers, kept quiet."""

import os
import sys

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """Turn the telemetry of libraries off, and their progress bars and advice; to be called before they are imported.

    What the user has set in the environment stays.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
