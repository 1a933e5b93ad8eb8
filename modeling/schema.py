"""Check untrusted values against annotated classes: one declaration gives the type, the bounds, the reader and the writer.

A field's type is written as `Annotated[float, bounds(ge=0)]`, with the bounds of pydantic's core, or with a function that
checks the value. Importing pydantic itself would add half to the time that serving takes to import.
"""

import base64
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic_core import CoreSchema, SchemaValidator, ValidationError, to_jsonable_python
from pydantic_core import core_schema as cs

from modeling.files import MAX_TEXT, ModelFolderError, is_name, shortened

_Checked = TypeVar("_Checked")


def bounds(**limits: float | str) -> tuple[tuple[str, float | str], ...]:
    """Return bounds for `Annotated`, such as ge, lt, min_length, max_length, pattern."""
    return tuple(limits.items())


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be 1 to {MAX_TEXT} printable characters")
    return text


Name = Annotated[str, _check_name]
Sha256 = Annotated[str, bounds(pattern="^[0-9a-f]{64}$")]
Fraction = Annotated[float, bounds(ge=0, le=1)]
Positive = Annotated[float, bounds(gt=0, lt=1e6)]
Count = Annotated[int, bounds(ge=0, lt=2**53)]
Extra = Literal["forbid", "ignore"]


def checked(kind: type[_Checked], content: Any, where: str, *, extra: Extra = "forbid") -> _Checked:
    """Return JSON content (of `read_json`, from the file `where`) as an instance of a dataclass or a TypedDict.

    Entries that are not declared are refused, or dropped.

    Raises:
        ModelFolderError: With the first entry that does not fit.
    """
    try:
        return SchemaValidator(_core(kind, extra)).validate_python(content)
    except ValidationError as error:
        raise ModelFolderError(f"{where}{_in_words(error)}.") from None


def plain(value: Any) -> Any:
    """Return JSON values of what `checked` returned; arrays become base64 of their float32 values."""
    return to_jsonable_python(
        value, fallback=lambda array: base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")
    )


def _core(kind: Any, extra: Extra) -> CoreSchema:
    """Return the schema of a type for pydantic's core."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        schema: Any = _core(args[0], extra)
        for rule in args[1:]:
            schema = cs.no_info_after_validator_function(rule, schema) if callable(rule) else schema | dict(rule)
        return schema
    if origin is NotRequired:
        return _core(args[0], extra)
    if origin in (Union, UnionType):
        choices: list[Any] = [_core(choice, extra) for choice in args if choice is not NoneType]
        return cs.nullable_schema(cs.union_schema(choices)) if NoneType in args else cs.union_schema(choices)
    if origin is Literal:
        return cs.literal_schema(list(args))
    if origin is tuple:
        return cs.tuple_schema([_core(args[0], extra)], variadic_item_index=0)
    if origin is list:
        return cs.list_schema(_core(args[0], extra))
    if origin is dict:
        return cs.dict_schema(_core(args[0], extra), _core(args[1], extra))
    if kind is np.ndarray:
        return cs.no_info_after_validator_function(_from_base64, _SCALARS[str])
    return _SCALARS[kind] if kind in _SCALARS else _object(kind, extra)


# Strict: types are not coerced.
_SCALARS: dict[Any, CoreSchema] = {
    str: cs.str_schema(strict=True),
    int: cs.int_schema(strict=True),
    bool: cs.bool_schema(strict=True),
    float: cs.float_schema(strict=True, allow_inf_nan=False),
    Any: cs.any_schema(),
}


def _object(kind: Any, extra: Extra) -> CoreSchema:
    entries = {name: _core(hint, extra) for name, hint in get_type_hints(kind, include_extras=True).items()}
    if hasattr(kind, "__required_keys__"):  # a TypedDict
        fields = {
            name: cs.typed_dict_field(schema, required=name in kind.__required_keys__)
            for name, schema in entries.items()
        }
        return cs.typed_dict_schema(fields, extra_behavior=extra)
    arguments = cs.dataclass_args_schema(
        kind.__name__, [cs.dataclass_field(name, schema) for name, schema in entries.items()], extra_behavior=extra
    )
    return cs.dataclass_schema(kind, arguments, list(entries), post_init=hasattr(kind, "__post_init__"), frozen=True)


def _from_base64(text: str) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    if len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("must hold finite numbers; download the model again")
    return array


def _in_words(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    entry = ".".join(shortened(part).strip("'") for part in first["loc"])
    value = "" if first["type"] in ("missing", "extra_forbidden") or not entry else f", got {shortened(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message, value = "unknown entry; refused, since other programs might build, download or run what it names", ""
    more = f" ({len(others)} more entries do not fit)" if others else ""
    return f"{entry}{': ' if entry else ''}{message}{value}{more}"
