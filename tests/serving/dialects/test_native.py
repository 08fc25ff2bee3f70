import pytest

from plaudit.serving.dialects.native import NATIVE
from plaudit.serving.json_body import validate
from plaudit.serving.serving_errors import ServingError

BODIES = {endpoint.path: endpoint.body for endpoint in NATIVE.endpoints}


def refusal(path, value):
    with pytest.raises(ServingError) as caught:
        validate(BODIES[path], value)
    return caught.value


@pytest.mark.parametrize(
    ("path", "value", "param"),
    [
        ("/v1/rewards", {"items": [{}] * 2_000}, "items[0]"),
        ("/v1/rewards", {"items": [{"messages": [{}] * 2_000}]}, "items[0].messages[0].role"),
        ("/v1/rank", {"prompt": "a", "responses": [1] * 2_000}, "responses[0]"),
    ],
)
def test_a_long_list_of_wrong_elements_is_refused_at_the_first(path, value, param):
    assert refusal(path, value).param == param


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "/v1/rewards",
            {"items": [{"text": "a"}], "normalise": True},
            "The body: A field is not known here; "
            "expected only: model, truncation, template_kwargs, aggregate, k, items, normalize, calibrated, members, "
            "columns.",
        ),
        (
            "/v1/rewards",
            {"items": [{"prompt": "a", "reponse": "b"}]},
            "items[0]: A field is not known here; expected only: prompt, response, messages, text, ids.",
        ),
        (
            "/v1/prefix-rewards",
            {"item": {"test": "a"}},
            "item: A field is not known here; expected only: prompt, response, messages, text, ids.",
        ),
    ],
)
def test_a_misspelt_field_is_answered_with_the_fields_that_are_known_there(path, value, message):
    error = refusal(path, value)
    assert error.message == message
    assert error.failure == "invalid"
