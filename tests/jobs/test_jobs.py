import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pipeline.py", "quikstart"], 'Did you mean "quickstart"?'),
        (["stage.py", "vrdicts", "quickstart"], 'Did you mean "verdicts"?'),
        (["pipeline.py"], "name a preset"),
        (["train.py", "quickstart", "train.lr=fast"], "train.lr"),
        (["evaluate.py", "quickstart", "run.out=s3://u:secret@b/x"], "holds a key"),
    ],
)
def test_a_job_fails_with_one_line_and_exit_code_2(words, says):
    command = [sys.executable, str(JOBS / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_jobs_are_at_most_60_lines():
    for file in JOBS.glob("*.py"):
        assert len(file.read_text().splitlines()) <= 60, file.name
