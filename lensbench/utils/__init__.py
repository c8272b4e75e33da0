"""Files, caches, progress and other small tools."""
