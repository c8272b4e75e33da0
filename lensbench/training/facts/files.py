"""The files that lie beside a fine-tuned adapter: what it was taught, how, and what became of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lensbench.models.adapters import read_adapter
from lensbench.models.edits import trials
from lensbench.models.language_model import LanguageModel
from lensbench.models.sources import FINETUNED, write_table
from lensbench.training.facts.settings import Finetuning
from lensbench.training.facts.texts import FORMS


def digest_of(model: LanguageModel, settings: Finetuning) -> str:
    """Return a digest of everything that training depends on."""
    forms = FORMS.read_text(encoding="utf-8")
    named = json.dumps([model.fingerprint, asdict(settings), forms], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def write_notes(
    folder: Path, model: LanguageModel, settings: Finetuning, figures: Mapping[str, Any], *, steps: int
) -> None:
    """Write settings, figures, and the base model: some matrices by which it is known again in another precision."""
    paths = list(read_adapter(folder).shapes)
    matrices = {path: trials(model.module, path) for path in dict.fromkeys((paths[0], paths[-1]))}
    notes = {
        "base": {"name": model.name, "fingerprint": model.fingerprint, "matrices": matrices},
        "settings": {**asdict(settings), "steps": steps},
        "figures": figures,
        "versions": {name: version(name) for name in ("lensbench", "peft", "torch", "transformers")},
    }
    write_table(folder / FINETUNED, notes)
