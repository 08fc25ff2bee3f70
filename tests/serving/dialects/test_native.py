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
