"""Analyses of the residual stream itself: how it drifts, whether lenses respond as the model does, where updates go."""

from lensbench.explore.analyses.alignment import make_interventions, stimulus_response
from lensbench.explore.analyses.drift import drift_of_layers, drift_of_pairs, outliers
from lensbench.explore.analyses.running import ANALYSES, AnalysisSettings, analyse, check_settings
from lensbench.explore.analyses.updates import update_alignment

__all__ = [
    "ANALYSES",
    "AnalysisSettings",
    "analyse",
    "check_settings",
    "drift_of_layers",
    "drift_of_pairs",
    "make_interventions",
    "outliers",
    "stimulus_response",
    "update_alignment",
]
