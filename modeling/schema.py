"""What config.json may hold: one declared schema, since a stranger may have written it. `read_json` keeps NaN out.

It is declared for pydantic's core, which checks it in Rust; importing pydantic itself would double the time that serving
takes to import.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from pydantic_core import CoreSchema, SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from modeling.files import MAX_TEXT, ModelFolderError, is_name, shortened

CONFIG_SCHEMA = 3  # 1 said wanted_sensitivity, 2 had another abstention rule
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_OPERATING_POINTS = 100


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be 1 to {MAX_TEXT} printable characters")
    return text


def _check_size(size: list[int]) -> list[int]:
    channels, height, width = size
    if channels != 3 or height != width or not 16 <= height <= MAX_SIZE_PX:
        raise ValueError(f"must be [3, S, S] with S from 16 to {MAX_SIZE_PX}")
    return size


def _three(numbers: CoreSchema) -> CoreSchema:
    return cs.list_schema(numbers, min_length=3, max_length=3)


def _object(entries: Mapping[str, CoreSchema], *, others: Literal["forbid", "ignore"] = "forbid") -> CoreSchema:
    """Declare an object; what may be null in it may also be missing."""
    fields = {name: cs.typed_dict_field(one, required=one["type"] != "nullable") for name, one in entries.items()}
    return cs.typed_dict_schema(fields, extra_behavior=others)


NAME = cs.no_info_after_validator_function(_check_name, cs.str_schema())
SHA256 = cs.str_schema(pattern=r"^[0-9a-f]{64}$")
FRACTION = cs.float_schema(ge=0, le=1)
COUNT = cs.int_schema(ge=0, lt=2**53)
LAYER = cs.nullable_schema(cs.union_schema([cs.str_schema(), cs.list_schema(cs.str_schema())]))

# What timm and transformers build the preprocessing from, and where the network's ends are.
PRETRAINED_CFG = {
    "input_size": cs.no_info_after_validator_function(_check_size, _three(cs.int_schema())),
    "interpolation": cs.literal_schema(["bicubic", "bilinear"]),
    "crop_pct": cs.float_schema(ge=1, le=1),  # as this package trains: no part of an image is cut off
    "crop_mode": cs.literal_schema(["squash"]),
    "mean": _three(cs.float_schema(ge=0, lt=10)),
    "std": _three(cs.float_schema(ge=0.001, lt=10)),
    "custom_load": cs.nullable_schema(cs.literal_schema([False])),
    "fixed_input_size": cs.nullable_schema(cs.bool_schema()),
    "pool_size": cs.nullable_schema(cs.list_schema(cs.int_schema())),
    "first_conv": LAYER,
    "classifier": LAYER,
}

# As `to_dict` of each writes it.
OPERATING_POINT = {
    "name": NAME,
    "codes": cs.list_schema(NAME, min_length=1),
    **dict.fromkeys(("target_sensitivity", "threshold", "sensitivity", "specificity"), FRACTION),
    **dict.fromkeys(("n_positive", "n_negative"), COUNT),
}
CALIBRATION = {
    "method": NAME,
    "scale": cs.list_schema(cs.float_schema(gt=0, lt=1e6)),
    "bias": cs.list_schema(cs.float_schema()),
    "nll": cs.dict_schema(cs.str_schema(), cs.float_schema()),
}
DECISION = {
    "method": NAME,
    "tau": cs.float_schema(ge=0, le=10),
    "melanoma_weight": cs.float_schema(ge=0.001, le=1000),
    "priors": cs.list_schema(cs.float_schema(gt=0, le=1)),
}
ABSTENTION = {
    "method": cs.literal_schema(["ViM with and without normalisation"]),
    "threshold": cs.float_schema(),
    "false_alarm_rate": FRACTION,
    **dict.fromkeys(("residual_weight", "length"), cs.float_schema(gt=0)),
    "n_features": cs.int_schema(ge=1, le=2**20),
    **dict.fromkeys(("centre", "directions"), cs.str_schema()),
}

# The root key `lesion`: what this package adds to timm's layout. Entries that it does not know are not read.
NAMES = ["package_version", "run_id", "dataset", "protocol", "base_model", "license"]
NAMES += ["data_fingerprint", "splits_sha256"]
LESION = {
    "weights_sha256": SHA256,
    "onnx_sha256": cs.nullable_schema(SHA256),
    "config_sha256": cs.nullable_schema(SHA256),
    **dict.fromkeys(NAMES, cs.nullable_schema(NAME)),
    "synthetic": cs.nullable_schema(cs.bool_schema()),
    "calibration": cs.nullable_schema(_object(CALIBRATION)),  # folded into the weights
    "decision": cs.nullable_schema(_object(DECISION)),
    "operating_points": cs.nullable_schema(cs.list_schema(_object(OPERATING_POINT), max_length=MAX_OPERATING_POINTS)),
    "abstention": cs.nullable_schema(_object(ABSTENTION)),
    "golden": cs.nullable_schema(cs.dict_schema(cs.str_schema())),
}

# All else would be for somebody else to obey: model_args, auto_map, url, file and more.
CONFIG = {
    "architecture": cs.str_schema(pattern=r"^[a-z0-9_]+$", max_length=MAX_TEXT),
    "num_classes": cs.int_schema(),
    "num_features": cs.nullable_schema(cs.int_schema()),
    "label_names": cs.list_schema(NAME, min_length=2, max_length=MAX_CLASSES),
    "label_descriptions": cs.dict_schema(cs.str_schema(), NAME),
    "pretrained_cfg": _object(PRETRAINED_CFG),
    "lesion": _object(LESION, others="ignore"),
}


@cache
def _validator() -> SchemaValidator:
    return SchemaValidator(_object(CONFIG))


def check_config(config: dict[str, Any], where: str) -> None:
    """Compare the content of a config.json with its schema.

    Raises:
        ModelFolderError: With the first entry that does not fit, and `where` it stands.
    """
    try:
        _validator().validate_python(config, strict=True)  # no number where a text is due
    except ValidationError as error:
        raise ModelFolderError(f"{where}: {_in_words(error)}.") from None
    names, lesion = config["label_names"], config["lesion"]
    of_points = {code for point in lesion.get("operating_points") or [] for code in point["codes"]}
    calibration, decision = lesion.get("calibration"), lesion.get("decision")
    per_diagnosis = [calibration["scale"], calibration["bias"]] if calibration else []
    per_diagnosis += [decision["priors"]] if decision else []
    problem = ""
    if len(set(names)) < len(names):
        problem = "label_names must be different names"
    elif config["num_classes"] != len(names):
        problem = f"num_classes is {config['num_classes']}, but there are {len(names)} label_names"
    elif not of_points <= {*names}:
        problem = f"an operating point is of {shortened(sorted(of_points - {*names})[0])}, which is no label_name"
    elif {len(numbers) for numbers in per_diagnosis} - {len(names)}:
        problem = f"calibration and decision must have a number for each of the {len(names)} label_names"
    if problem:
        raise ModelFolderError(f"{where}: {problem}.")


def _in_words(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    entry = ".".join(shortened(part).strip("'") for part in first["loc"])
    value = "" if first["type"] in ("missing", "extra_forbidden") or not entry else f", got {shortened(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = (
            "this package never writes such an entry; refused, since other programs take from such entries what to "
            "build, download or run"
        )
    more = f" ({len(others)} more entries do not fit)" if others else ""
    return f"{entry}{': ' if entry else ''}{message}{value}{more}"
