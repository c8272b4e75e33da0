"""Methods that learn from labelled activations."""
