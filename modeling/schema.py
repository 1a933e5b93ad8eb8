"""Check untrusted JSON against annotated classes: one declaration gives the type, the bounds, the reader and the writer."""

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from modeling.files import MAX_TEXT, ModelFolderError, is_name, shortened

_Checked = TypeVar("_Checked")
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be 1 to {MAX_TEXT} printable characters")
    return text


def _from_base64(text: object) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(text if isinstance(text, str) else "?", validate=True), dtype="<f4")
    if len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("must hold finite numbers; download the model again")
    return array


def _to_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


Name = Annotated[str, AfterValidator(_check_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, lt=1e6)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Array = Annotated[np.ndarray, PlainValidator(_from_base64)]  # float32, one axis: JSON has no shapes


def checked(kind: type[_Checked], content: Any, where: str) -> _Checked:
    """Return JSON content as an instance of an annotated class.

    Args:
        kind: A TypedDict, decorated with the configuration that its entries share.
        content: What `read_json` gave.
        where: The file, for the message.

    Raises:
        ModelFolderError: With the first entry that does not fit.
    """
    try:
        # As text, since in strict mode only JSON has lists for tuples.
        return cast(_Checked, _adapter(kind).validate_json(json.dumps(content)))
    except ValidationError as error:
        raise ModelFolderError(f"{where}: {_in_words(error)}.") from None


def plain(value: Any) -> Any:
    """Return JSON values of what `checked` returned; arrays become base64 of their float32 values."""
    return to_jsonable_python(value, fallback=_to_base64)


def _in_words(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    entry = ".".join(shortened(part).strip("'") for part in first["loc"])
    value = "" if first["type"] in ("missing", "extra_forbidden") or not entry else f", got {shortened(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message, value = "unknown entry; refused, since other programs might build, download or run what it names", ""
    more = f" ({len(others)} more entries do not fit)" if others else ""
    return f"{entry}{': ' if entry else ''}{message}{value}{more}"
