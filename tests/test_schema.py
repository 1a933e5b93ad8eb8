"""modeling/schema.py: one declaration checks, reads and writes."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

import numpy as np
import pytest

from modeling.files import ModelFolderError
from modeling.schema import Count, Fraction, Name, bounds, checked, plain


@dataclass(frozen=True, eq=False)
class Fitted:
    name: Name
    codes: Annotated[tuple[Name, ...], bounds(min_length=1)]
    rate: Fraction
    values: np.ndarray
    kind: Literal["a", "b"] = "a"


class File(TypedDict):
    count: Count
    fitted: list[Fitted]
    note: NotRequired[str | None]
    weights: NotRequired[dict[str, float] | None]


CONTENT = {
    "count": 3,
    "fitted": [{"name": "x", "codes": ["MEL", "NV"], "rate": 0.5, "values": "AACAPwAAAEA=", "kind": "b"}],
    "note": None,
}


def test_checked_content_is_built_and_written_as_it_was() -> None:
    found = checked(File, json.loads(json.dumps(CONTENT)), "file.json: ")
    assert found["fitted"][0].codes == ("MEL", "NV")
    assert found["fitted"][0].values.tolist() == [1.0, 2.0]  # float32, little-endian
    assert plain(found) == CONTENT
    assert checked(File, {"count": 0, "fitted": []}, "file.json: ") == {
        "count": 0,
        "fitted": [],
    }


def changed(**entries: object) -> dict[str, object]:
    return {**CONTENT, "fitted": [{**CONTENT["fitted"][0], **entries}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**CONTENT, "count": -1}, "count: Input should be greater than or equal to 0, got -1"),
        ({**CONTENT, "count": 3.0}, "count: Input should be a valid integer, got 3.0"),
        ({**CONTENT, "count": "3"}, "count: Input should be a valid integer, got '3'"),
        ({**CONTENT, "count": True}, "count: Input should be a valid integer, got True"),
        ({"fitted": []}, "count: Field required"),
        ({**CONTENT, "url": "x"}, "url: unknown entry; refused"),
        ({**CONTENT, "note": 7}, "note: Input should be a valid string, got 7"),
        ({**CONTENT, "weights": {"MEL": float("inf")}}, r"weights\.MEL: Input should be a finite number"),
        (changed(name=""), r"fitted\.0\.name: must be 1 to 200 printable characters"),
        (changed(name="\x1b[2J"), "printable"),
        (changed(codes=[]), r"fitted\.0\.codes: .*at least 1 item"),
        (changed(codes="MEL"), r"fitted\.0\.codes: "),
        (changed(rate=1.01), r"fitted\.0\.rate: Input should be less than or equal to 1"),
        (changed(rate="0.5"), r"fitted\.0\.rate: Input should be a valid number"),
        (changed(kind="c"), r"fitted\.0\.kind: Input should be 'a' or 'b'"),
        (changed(values="AACAfw=="), "finite numbers"),  # infinity
        (changed(values=""), "finite numbers"),
        (changed(values="not base64!"), r"fitted\.0\.values: "),
        (changed(extra=1), r"fitted\.0\.extra: unknown entry"),
        ({**CONTENT, "fitted": [1]}, r"fitted\.0: "),
        ([], "file.json: "),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(content: object, words: str) -> None:
    with pytest.raises(ModelFolderError, match=words):
        checked(File, content, "file.json: ")


def test_a_message_about_a_long_value_stays_short_and_counts_the_others() -> None:
    with pytest.raises(ModelFolderError, match="2 more entries do not fit") as caught:
        checked(File, {"count": "x" * 10**6, "fitted": 1, "note": 2}, "file.json: ")
    assert len(str(caught.value)) < 300
