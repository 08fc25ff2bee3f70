"""The dialect of `huggingface_hub.InferenceClient.text_classification`, which posts to its `base_url`.

Rewards are raw unless `function_to_apply` is "sigmoid". A softmax over one label is 1 for every text, so "softmax" is
an error. The `inputs` are tokenised with the tokenizer's special tokens and without an EOS that it does not add.

The answer is the list of the labels of each text, and the client takes the first.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from plaudit.serving.dialects.dialect import Body, Dialect, Endpoint, Texts, input_items, only
from plaudit.serving.scoring_request import Scored, ScoringRequest

__all__ = ["HUGGINGFACE"]

_NO_SOFTMAX = 'expected "none" or "sigmoid": the softmax of a single reward is 1 for every text'


class _Parameters(Body):
    """The options of a task."""

    function_to_apply: Annotated[Literal["sigmoid", "none"] | None, only("sigmoid", "none", reason=_NO_SOFTMAX)] = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class _Classification(Body):
    """A body of a text classification."""

    inputs: str | Texts
    parameters: _Parameters = _Parameters()


def _read(body: _Classification) -> ScoringRequest:
    items, names = input_items(body.inputs, "inputs", "added")
    sigmoid = body.parameters.function_to_apply == "sigmoid"
    return ScoringRequest(items, names, activation="sigmoid" if sigmoid else "identity")


def _answer(_: _Classification, scored: Scored) -> list[list[dict[str, Any]]]:
    return [[{"label": scored.label, "score": value}] for value in scored.values]


HUGGINGFACE = Dialect(name="huggingface", endpoints=(Endpoint("/", _Classification, _read, _answer),))
