"""The missing tables of one stage as a Ray job.

ray job submit --working-dir . -- python jobs/stage.py NAME CONFIG... [key=value ...]
"""

import sys

from facttune_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["stage", *sys.argv[1:]]))
