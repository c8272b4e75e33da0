"""Baselines, rival explanations of a score: a function in here each, and a TOML file that says what it rules out."""
