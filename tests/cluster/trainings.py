"""Trainings of one tiny model, one after the other, as one Ray job.

python tests/cluster/trainings.py FOLDER '{"two": {"workers": 2, "deepspeed": "zero3"}, ...}'

FOLDER/reference is the table; FOLDER/two/train.jsonl has the losses.
"""

import json
import runpy
import sys
from pathlib import Path

from facttune_ray.runtime import cluster, training

folder, trainings = Path(sys.argv[1]), json.loads(sys.argv[2])
made = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))
reference = str(folder / "reference/part-00000.parquet"), str(folder / "reference/model")
cluster.start_ray()
for name, settings in trainings.items():
    training.train(made["job_of"](reference, folder / name, **settings))
