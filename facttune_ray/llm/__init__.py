"""Requests to OpenAI-compatible endpoints: client, ledger of paid completions, cost."""
