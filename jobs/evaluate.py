r"""Base and trained models on held-out topics, summary and report, as a Ray job.

ray job submit --runtime-env jobs/runtime_env.yaml -- \
    python jobs/evaluate.py CONFIG... [key=value ...]
"""

import sys

from facttune_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
