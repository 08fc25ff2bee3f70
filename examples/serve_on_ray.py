"""Serve replicas of a reward model on Ray Serve, with all dialects, as `plaudit serve MODEL --engine ray` does.

`python examples/serve_on_ray.py my-reward-model --replicas 4`. RAY_ADDRESS names a cluster; without it Ray starts on
this machine. Each item of a request goes to the replica that the hash of its prompt names, so that the responses of a
prompt meet on one replica.
"""

import argparse
import sys

from plaudit.serving.application import create_application
from plaudit.serving.ray_replicas import RayReplicas
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.server import listen, run
from plaudit.serving.server_limits import ServerLimits


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="A folder that each machine has, or a hub id.")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    service = ScoringService(ServerLimits())
    service.serve([RayReplicas("reward-model", given.model, given.replicas, options={})])
    application = create_application(service, allowed_hosts=["127.0.0.1", "localhost"])
    return run(application, service, listen("127.0.0.1", given.port), on_ready=print)


if __name__ == "__main__":
    sys.exit(main())
