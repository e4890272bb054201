"""Models as folders that travel: written, read, described, shared."""
