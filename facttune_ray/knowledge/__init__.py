"""The knowledge source: build it, read it, find passages in it."""
