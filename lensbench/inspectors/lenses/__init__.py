"""Methods that give a distribution over the vocabulary at each layer."""
