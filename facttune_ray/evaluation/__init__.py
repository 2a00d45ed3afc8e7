"""What a run achieved: metrics, report."""
