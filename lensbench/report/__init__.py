"""Tables and plots of a run. Everything here is made from its records and `run.json`; nothing needs a model."""
