"""Training a verbalizer to read activations: what `lensbench fit oracle` does."""

from lensbench.oracle_training.settings import RELATIONS, OracleTraining, make_settings
from lensbench.oracle_training.training import train

__all__ = ["RELATIONS", "OracleTraining", "make_settings", "train"]
