"""One prompt looked into: a lens at each layer and token, a token's state described layer by layer."""
