"""Methods that attribute an answer to parts of the model."""
