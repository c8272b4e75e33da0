"""The figures, one a file: how each is drawn for a paper, and what a page of a run shows of it."""
