"""Teaching a model facts by fine-tuning, and finding by interchange where it keeps them: `lensbench finetune`."""

from lensbench.training.facts.settings import Finetuning, make_settings
from lensbench.training.facts.training import finetune

__all__ = ["Finetuning", "finetune", "make_settings"]
