"""Requests and answers of a dialect without a server: what a body asks for, and the answer to it with given rewards."""

import math

import numpy as np

from plaudit.serving.scoring_request import Scored


def endpoint(dialect, path):
    (found,) = (each for each in dialect.endpoints if each.path == path)
    return found


def read(dialect, path, body):
    """The request that a body makes."""
    route = endpoint(dialect, path)
    return route.read(route.body.model_validate(body))


def scored(rewards, activation="identity"):
    """Rewards as the scheduler hands them over: of 10, 11, ... tokens, with a sigmoid in float32 if asked for."""
    sigmoid = [float(np.float32(1 / (1 + math.exp(-reward)))) for reward in rewards]
    return Scored(
        model="tiny",
        weight_version="v1",
        rewards=list(rewards),
        values=sigmoid if activation == "sigmoid" else list(rewards),
        tokens=[10 + n for n in range(len(rewards))],
        truncated=[False] * len(rewards),
        queued_seconds=0.25,
        run_seconds=0.5,
        label="LABEL_0",
    )


def ask(dialect, path, body, rewards):
    """The answer to a body whose items have these rewards."""
    route = endpoint(dialect, path)
    parsed = route.body.model_validate(body)
    request = route.read(parsed)
    assert len(request.items) == len(request.names) == len(rewards)
    return route.answer(parsed, scored(rewards, request.activation))
