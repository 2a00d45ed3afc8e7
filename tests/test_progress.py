from facttune_ray.progress import line


def test_rates_are_since_the_last_line_and_counts_of_the_stage():
    last = {"calls": 100, "prompt_tokens": 1000, "completion_tokens": 100}
    used = {
        "calls": 300,
        "prompt_tokens": 41_000,
        "completion_tokens": 2100,
        "refused": 7,
        "cached": 1204,
    }
    text = line("base/tune/facts", "3/8 parts", used, last, 2.0, 0.314)
    assert text.split("  ")[0] == "base/tune/facts"
    for part in ("3/8 parts", "100 req/s", "21,000 tok/s", "7 429s", "1,204 from", "$0.31"):
        assert part in text
