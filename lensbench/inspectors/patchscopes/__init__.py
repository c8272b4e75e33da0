"""Methods that write an activation into another prompt."""
