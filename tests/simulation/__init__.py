"""A deterministic simulator of the LLM client: see `run.py`."""
