r"""The whole loop as a Ray job: every missing table, training, evaluation, report.

ray job submit --runtime-env jobs/runtime_env.yaml -- \
    python jobs/pipeline.py CONFIG... [key=value ...]
"""

import sys

from facttune_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
