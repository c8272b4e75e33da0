"""Tools that look at a model, a prompt or a run."""
