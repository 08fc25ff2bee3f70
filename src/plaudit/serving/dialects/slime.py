"""The dialect of slime's remote reward model, the one of `--rm_type remote_rm --rm_url`.

A request is one sample, and the answer is its raw reward, a bare JSON number. A `prompt` that is a string is text that
the chat template wrote; it is joined with the response and tokenised as it stands, with no special token added. A
`prompt` of messages is written by the model's chat template with the response as the assistant's message. The `label`
is not read.

A full queue is a 503; the client tries ten times, further and further apart.
"""

from typing import Annotated, Any

from pydantic import Field

from plaudit.serving.dialects.dialect import Body, Dialect, Endpoint
from plaudit.serving.scoring_request import Item, Pair, Scored, ScoringRequest, Text

__all__ = ["SLIME"]


class _Sample(Body):
    """A body: one sample."""

    prompt: str | Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    response: str


def _read(body: _Sample) -> ScoringRequest:
    item: Item = Pair(body.prompt, body.response)
    if isinstance(body.prompt, str):
        item = Text(body.prompt + body.response, special_tokens="none")
    return ScoringRequest([item], ["prompt"])


def _answer(_: _Sample, scored: Scored) -> float:
    return scored.values[0]


SLIME = Dialect(name="slime", endpoints=(Endpoint("/", _Sample, _read, _answer),))
