"""The dialect of OpenRLHF's reward server: /get_reward, for its option `--remote_rm_url`.

Rewards are raw. A `query` is prompt and response as the chat template and the sampler wrote them, special tokens
included. OpenRLHF's server tokenises it as it stands: no BOS and no EOS is added or removed, and neither is here.
`prompts` and `labels` come with each request and are not read: `query` holds the prompt.

A full queue is a 503; the client tries five times, a second apart.
"""

from typing import Any

from plaudit.serving.dialects.dialect import Body, Dialect, Endpoint, Texts, input_items
from plaudit.serving.scoring_request import Scored, ScoringRequest

__all__ = ["OPENRLHF"]


class _GetReward(Body):
    """A body of /get_reward."""

    query: Texts


def _read(body: _GetReward) -> ScoringRequest:
    return ScoringRequest(*input_items(body.query, "query", "none"))


def _answer(_: _GetReward, scored: Scored) -> dict[str, Any]:
    return {"rewards": scored.values, "scores": scored.values, "extra_logs": {}}


OPENRLHF = Dialect(name="openrlhf", endpoints=(Endpoint("/get_reward", _GetReward, _read, _answer),))
