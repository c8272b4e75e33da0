"""Programs for those who work on lensbench; none is part of the package."""
