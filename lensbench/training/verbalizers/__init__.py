"""Training a verbalizer to read activations: what `lensbench fit oracle` does."""

from lensbench.training.verbalizers.settings import RELATIONS, OracleTraining, make_settings
from lensbench.training.verbalizers.training import train

__all__ = ["RELATIONS", "OracleTraining", "make_settings", "train"]
