"""Training for methods and targets: lenses, facts, verbalizers."""
