"""Baselines: rival explanations of a score. Each is a function in here, and a TOML file that says what it rules out."""
