"""Estimates the tokens of an English text without a tokenizer."""

from __future__ import annotations


def estimated_tokens(text: str) -> float:
    """Four tokens for three words: OpenAI's rule of thumb for English."""
    return len(text.split()) * 4 / 3
