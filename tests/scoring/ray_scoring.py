"""Score files on one local Ray of two processors, in a process of its own.

argv: the folder with `in.jsonl` and the model; then, as JSON, the arguments of each run: the output, the least and the
greatest number of workers, and options of `ScoringConfig`. Prints the number of workers of each run, or its error.
"""

import json
import os
import sys
import threading
from pathlib import Path

import ray
import ray.data

from plaudit.data.reader import Source
from plaudit.errors import PlauditError
from plaudit.scoring.job import score_file
from plaudit.scoring.ray_executor import RayExecutor
from plaudit.scoring.worker import ScoringConfig


def main(folder, runs):
    ray.init(num_cpus=2, include_dashboard=False)
    # On a busy machine one worker could have finished before the other has started.
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300
    os.chdir(folder)  # Ray's processes do not run there
    outcomes = []
    for output, workers, options in json.loads(runs):
        config, executor = ScoringConfig("model", "cpu", 1, **options), RayExecutor(*workers)
        try:
            outcomes.append(score_file(Source("in.jsonl"), Path(output), config, executor=executor).workers)
        except PlauditError as error:
            outcomes.append(str(error))
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]
        assert not left, f"still running: {left}"  # such a thread would go on unseen, and crash a later shutdown
    outcomes.append(RayExecutor().default_device())
    print("OUTCOMES " + json.dumps(outcomes), flush=True)
    ray.shutdown()  # in which a thread of Ray itself may abort the process


if __name__ == "__main__":
    main(*sys.argv[1:])
