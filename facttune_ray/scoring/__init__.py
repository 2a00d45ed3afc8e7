"""Pure scoring functions: no Ray, no I/O."""
