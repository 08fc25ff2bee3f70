"""JSON bodies: bounded reading, and validation with errors that never quote the request."""

import math
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.serving_errors import ServingError

__all__ = ["read_json", "validate"]

_Body = TypeVar("_Body", bound=BaseModel)

_STRING = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?')
_LARGEST_INTEGER = 10**19
# Elements of a list, other than token ids, that are taken whatever the number of items is. To validate a million of
# them takes seconds, in which nothing else is answered.
_ALWAYS_TAKEN = 1_000
_MOST_ERRORS = 1_000

# Kinds of errors whose messages hold what was expected, and nothing of the input; "unsupported" is of our dialects.
_SAFE_MESSAGES = re.compile(
    r"missing|extra_forbidden|\w+_type|literal_error|enum|finite_number|int_parsing|int_from_float|float_parsing"
    r"|bool_parsing|too_short|too_long|string_too_short|string_too_long|greater_than(_equal)?|less_than(_equal)?"
    r"|multiple_of|union_tag_not_found|unsupported"
)


def read_json(data: bytes, limits: ServerLimits) -> Any:
    """Return the value of a JSON text in UTF-8.

    Numbers that are not finite, integers of 20 digits and more, and surrogates without their other half are refused.
    Of a key that occurs twice the last value counts.

    Args:
        data: The body of a request.
        limits: Bounds on the depth, the number of values, the strings and the lists.

    Raises:
        ServingError: The text is no JSON, or beyond a limit ("invalid").
    """
    if _separators(data) > limits.max_json_values and _separators(_STRING.sub(b"", data)) > limits.max_json_values:
        raise _refusal(f"The body holds more than {limits.max_json_values} values; send several smaller requests.")
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:  # its message holds a position, and nothing of the text
        raise ServingError("invalid", f"The body is not JSON: {error}.") from None
    level: list[Collection[Any]] = [[value]]
    for _ in range(limits.max_json_depth + 1):
        level = [inner for outer in level for inner in _check(outer, limits)]
        if not level:
            return value
    raise _refusal(f"The body nests lists and objects more than {limits.max_json_depth} deep.")


def _separators(data: bytes) -> int:
    """Number of commas and opening brackets: at least the number of values less one."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _check(values: Collection[Any], limits: ServerLimits) -> Iterator[Collection[Any]]:
    """Check the strings and numbers among some values, and give out what their lists and objects hold."""
    if set(map(type, values)) <= {int}:  # a list of token ids is checked as a whole
        if values and max(max(values), -min(values)) >= _LARGEST_INTEGER:
            raise _refusal("The body holds an integer of more than 19 digits.")
        return
    for value in values:
        if isinstance(value, str):
            if len(value) > limits.max_string_length:
                raise _refusal(f"The body holds a string of more than {limits.max_string_length} characters.")
        elif isinstance(value, int):
            if abs(value) >= _LARGEST_INTEGER:
                raise _refusal("The body holds an integer of more than 19 digits.")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _refusal("The body holds a number that is too large for a float.")
        elif value:
            longest = max(limits.max_items, _ALWAYS_TAKEN)
            if len(value) > longest and not (isinstance(value, list) and set(map(type, value)) <= {int}):
                raise _refusal(
                    f"The body holds a list of more than {longest:,} elements, and a request may have "
                    f"{limits.max_items:,} items. Send several requests."
                )
            yield value
            if isinstance(value, dict):
                yield value.values()


def _refusal(message: str) -> ServingError:
    return ServingError("invalid", message)


def validate(model: type[_Body], value: Any) -> _Body:
    """Return a value as an object of a pydantic model.

    Args:
        model: The model of the body.
        value: What `read_json` returned.

    Raises:
        ServingError: The value has another shape ("invalid"). The message says what was expected of one field, which
            `param` names. Names that the request made up, such as an unknown field, are not repeated; the fields that
            are known at that place are listed.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        if error.error_count() > _MOST_ERRORS:
            raise ServingError("invalid", "The body has another shape than this route expects.") from None
        details = error.errors(include_input=False, include_url=False, include_context=False)
    chosen = _best_branch(details, _declared_names(model))
    path = _path(chosen[0], _declared_names(model))
    messages = dict.fromkeys(_expected(detail, model) for detail in chosen)
    raise ServingError("invalid", f"{path or 'The body'}: {', or '.join(messages)}.", param=path or None)


def _best_branch(details: list[ErrorDetails], declared: frozenset[str]) -> list[ErrorDetails]:
    """Return the first error; if it is about a union, the first error of the alternative that came closest to it.

    Alternatives are closer the fewer errors they have, then the deeper inside the value their first error is. If
    several are equally close to the same value, an error of each is returned.
    """
    union = _union(details[0], declared)
    if union is None:
        return details[:1]
    branches: dict[Any, list[ErrorDetails]] = {}
    for detail in details:
        if _union(detail, declared) == union:
            branches.setdefault(detail["loc"][len(union)], []).append(detail)
    ranked = sorted(branches.values(), key=lambda branch: (len(branch), -len(_path_parts(branch[0], declared))))
    best = [branch[0] for branch in ranked if len(branch) == len(ranked[0])]
    return [detail for detail in best if _path(detail, declared) == _path(best[0], declared)]


def _union(detail: ErrorDetails, declared: frozenset[str]) -> tuple[int | str, ...] | None:
    """Return the location up to the first name of an alternative in a union; `None` without a union.

    pydantic writes the alternative's type between the names of fields. An unknown field, which is last in its
    location, is not taken for one.
    """
    location = detail["loc"][:-1] if detail["type"] == "extra_forbidden" else detail["loc"]
    for position, part in enumerate(location):
        if isinstance(part, str) and part not in declared:
            return location[:position]
    return None


def _path_parts(detail: ErrorDetails, declared: frozenset[str]) -> list[int | str]:
    """Return the indices and the declared names of a location."""
    return [part for part in detail["loc"] if isinstance(part, int) or part in declared]


def _path(detail: ErrorDetails, declared: frozenset[str]) -> str:
    """Return a location such as "items[3].text"."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in _path_parts(detail, declared))
    return "".join(parts).removeprefix(".")


def _expected(detail: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what pydantic expected, if its message holds nothing else."""
    if detail["type"] == "extra_forbidden":
        return f"A field is not known here; expected only: {', '.join(_known_fields(model, detail['loc'][:-1]))}"
    if detail["type"] in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        return "Input should be an object"
    return detail["msg"] if _SAFE_MESSAGES.fullmatch(detail["type"]) else "The value is not valid here"


def _known_fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields of the object at a location inside a model."""
    models = [model]
    for part in location:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
        else:  # an index, or the name of an alternative in a union
            models = [each for each in models if each.__name__ == part] or models
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in a type such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


@cache
def _declared_names(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of all fields of a model and of the models in it."""

    def names(schema: Any) -> Iterator[str]:
        for key, inner in schema.items() if isinstance(schema, dict) else ():
            if key == "properties":
                yield from inner
            yield from names(inner)
        for inner in schema if isinstance(schema, list) else ():
            yield from names(inner)

    return frozenset(names(model.model_json_schema(mode="validation")))
