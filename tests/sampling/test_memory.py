from __future__ import annotations

from transformers import LlamaConfig

from facttune_ray.sampling.memory import row_bytes, rows_that_fit


def test_row_bytes_by_hand():
    """Llama-2-7B in float16: 512 KiB of keys and values a position."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000
    )
    sizes = {"prefix": 300, "prompt": 20, "new": 15, "n": 20}
    beside = 32000 * 14 + (8 * 4096 + 3 * 11008) * 2 + 8 * 32 * 335
    assert row_bytes(config, 2, shares=True, **sizes) == 16 * 2**19 + beside  # 15 and 20 / 20
    assert row_bytes(config, 2, shares=False, **sizes) == 335 * 2**19 + beside
    config.num_key_value_heads = 8  # grouped queries: a quarter of the keys and values
    assert row_bytes(config, 2, shares=True, **sizes) == 16 * 2**17 + beside


def test_at_least_one_row_fits():
    assert rows_that_fit(1000, 0.5, 100, 512) == 5
    assert rows_that_fit(10**9, 0.5, 100, 512) == 512
    assert rows_that_fit(10, 0.5, 100, 512) == 1
