"""Teaching a model facts by fine-tuning, and finding by interchange where it keeps them: `lensbench finetune`."""

from lensbench.finetuning.settings import Finetuning, make_settings
from lensbench.finetuning.training import finetune

__all__ = ["Finetuning", "finetune", "make_settings"]
