"""Measurements of jobs/bench_*.py: this project and the systems that it is compared with."""

import os
from pathlib import Path

# the processes that a benchmark starts, and Ray's workers, must find this package
_paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))
