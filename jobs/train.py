r"""Training alone as a Ray job: on a run's rewards, or on preferences in data.groups.

ray job submit --runtime-env jobs/runtime_env.yaml -- \
    python jobs/train.py CONFIG... [key=value ...]
"""

import sys

from facttune_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
