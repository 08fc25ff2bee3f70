"""Runs `plaudit score` several times on one local Ray of two processors.

argv: the arguments of each, as JSON, and the folder that they are relative to. Ray's processes know nothing of it.
"""

import json
import os
import sys
import threading

import ray
import ray.data
from click.testing import CliRunner

from plaudit.cli import cli


def main():
    ray.init(num_cpus=2, include_dashboard=False)
    # On a busy machine one worker would be done before the other has started.
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300
    os.chdir(sys.argv[2])
    outcomes = []
    for arguments in json.loads(sys.argv[1]):
        result = CliRunner().invoke(cli, ["score", *arguments, "--engine", "ray"])
        outcomes.append(str(result.exception) if result.exit_code else " ".join(result.output.split()))
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]
        assert not left, f"still running: {left}"  # it would go on behind a person's back, and crash a later shutdown
    ray.shutdown()
    print("OUTCOMES " + json.dumps(outcomes))


if __name__ == "__main__":
    main()
