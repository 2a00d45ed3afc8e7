r"""The missing tables of one stage as a Ray job.

ray job submit --runtime-env jobs/runtime_env.yaml -- \
    python jobs/stage.py NAME CONFIG... [key=value ...]

NAME: a stage that `facttune stage --help` lists.
"""

import sys

from facttune_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["stage", *sys.argv[1:]]))
