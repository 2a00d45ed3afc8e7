"""Measurements of jobs/bench_*.py: this project and the systems that it is compared with."""
