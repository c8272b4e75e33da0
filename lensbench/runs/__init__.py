"""A run folder: read, shown, exported."""
