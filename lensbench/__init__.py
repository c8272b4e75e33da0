"""lensbench: which method reads what in a language model, at which layer, and is it reading the model or only the input."""
