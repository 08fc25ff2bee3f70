"""Score through two replicas on one local Ray of two processors, in a process of its own.

argv: the folder of the model. Reads requests from stdin, one a line, as lists of items in JSON; each item is a text, or
a list of the prompt and the response. Prints for each the rewards and the distinct tokens, or the failure.
"""

import asyncio
import json
import sys
import time

import ray

from plaudit.serving.ray_replicas import RayReplicas
from plaudit.serving.scoring_request import Pair, ScoringRequest, Text
from plaudit.serving.serving_errors import ServingError


def read(line):
    items = [Text(each) if isinstance(each, str) else Pair(*each) for each in json.loads(line)]
    return ScoringRequest(items, [f"items[{n}]" for n in range(len(items))])


async def answer(replicas, request):
    try:
        scored = await replicas.score(request, client="a", deadline=time.monotonic() + 100)
    except ServingError as error:
        return [error.failure, error.param]
    return [scored.rewards, scored.distinct_tokens]


async def score(replicas, requests):
    await replicas.check(60)
    return await asyncio.gather(*(answer(replicas, request) for request in requests))


def main(folder):
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="WARNING")
    replicas = RayReplicas("tiny", folder, 2, options={"device": "cpu"})
    answers = asyncio.run(score(replicas, [read(line) for line in sys.stdin]))
    outcome = {"answers": answers, "max_length": replicas.info.max_length, "queued": replicas.queued_items}
    replicas.close()
    ray.shutdown()
    print("OUTCOME " + json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
