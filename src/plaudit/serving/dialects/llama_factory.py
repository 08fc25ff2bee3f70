"""The dialect of LLaMA-Factory's /v1/score/evaluation, which its PPO reads with `reward_model_type: api`.

Rewards are raw. The `messages` are whole texts that LLaMA-Factory's template wrote; they are tokenised with the
tokenizer's special tokens, and a second BOS is dropped. With `max_length`, longer texts are cut on the right, as
LLaMA-Factory's server cuts them; without it the server's own rule holds, where LLaMA-Factory cuts silently.

The client looks for `scores` and never at the status.
"""

from typing import Annotated, Any

from pydantic import Field

from plaudit.serving.dialects.dialect import Body, Dialect, Endpoint, Texts, input_items, new_id
from plaudit.serving.scoring_request import Scored, ScoringRequest

__all__ = ["LLAMA_FACTORY"]


class _Evaluation(Body):
    """A body of /v1/score/evaluation."""

    model: str
    messages: Texts
    max_length: Annotated[int, Field(ge=1)] | None = None


def _read(body: _Evaluation) -> ScoringRequest:
    items, names = input_items(body.messages, "messages", "added")
    return ScoringRequest(
        items,
        names,
        model=body.model,
        truncation=None if body.max_length is None else "right",
        max_length=body.max_length,
    )


def _answer(_: _Evaluation, scored: Scored) -> dict[str, Any]:
    identifier = new_id("scoreval")
    return {"id": identifier, "object": "score.evaluation", "model": scored.model, "scores": scored.values}


LLAMA_FACTORY = Dialect(
    name="llama_factory",
    endpoints=(Endpoint("/v1/score/evaluation", _Evaluation, _read, _answer),),
    describe_error=lambda error, _: {"detail": error.message},
    statuses={"invalid": 400},
)
