"""Methods that put an activation into words."""
