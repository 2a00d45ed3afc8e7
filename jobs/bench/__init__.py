"""What this project measures itself against: contenders of jobs/bench_*.py."""
