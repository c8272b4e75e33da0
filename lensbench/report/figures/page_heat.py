"""Accuracy of each method at each layer as a map; only pages show it."""

from lensbench.report.figure import Figure

FIGURE = Figure(title="Method × layer", about="The accuracies as a map.", anchor="heat", label="Heat map", order=30)
