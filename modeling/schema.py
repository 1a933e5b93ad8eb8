"""What config.json may hold: one declared schema, since a stranger may have written it.

It is declared for pydantic's core, which checks it in Rust; importing pydantic itself would double the time that serving
takes to import.
"""

from functools import cache
from typing import Any

from pydantic_core import SchemaValidator, ValidationError

from modeling.files import MAX_TEXT, ModelFolderError, is_name, shortened

CONFIG_SCHEMA = 2  # 1 said wanted_sensitivity
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_OPERATING_POINTS = 100

Schema = dict[str, Any]  # of pydantic_core.core_schema


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be 1 to {MAX_TEXT} printable characters")
    return text


def _check_size(size: list[int]) -> list[int]:
    channels, height, width = size
    if channels != 3 or height != width or not 16 <= height <= MAX_SIZE_PX:
        raise ValueError(f"must be [3, S, S] with S from 16 to {MAX_SIZE_PX}")
    return size


def _checked(schema: Schema, function: Any) -> Schema:
    return {"type": "function-after", "schema": schema, "function": {"type": "no-info", "function": function}}


def _text(**limits: Any) -> Schema:
    return {"type": "str", **limits}


def _float(**limits: float) -> Schema:
    return {"type": "float", "allow_inf_nan": False, **limits}


def _int(**limits: int) -> Schema:
    return {"type": "int", **limits}


def _one_of(*values: Any) -> Schema:
    return {"type": "literal", "expected": list(values)}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "list", "items_schema": items, **limits}


def _by_name(values: Schema) -> Schema:
    return {"type": "dict", "keys_schema": _text(), "values_schema": values}


def _maybe(schema: Schema) -> Schema:
    """Declare an entry that may be missing or null."""
    return {"type": "nullable", "schema": schema}


def _object(entries: dict[str, Schema], others: str = "forbid") -> Schema:
    fields = {
        name: {"type": "typed-dict-field", "schema": schema, "required": schema["type"] != "nullable"}
        for name, schema in entries.items()
    }
    return {"type": "typed-dict", "fields": fields, "extra_behavior": others}


NAME = _checked(_text(), _check_name)
SHA256 = _text(pattern=r"^[0-9a-f]{64}$")
FRACTION = _float(ge=0, le=1)
THREE = {"min_length": 3, "max_length": 3}
COUNT = _int(ge=0, lt=2**53)
LAYER = _maybe({"type": "union", "choices": [_text(), _list(_text())]})

# What timm and transformers build the preprocessing from, and where the network's ends are.
PREPROCESSING = {
    "input_size": _checked(_list(_int(), **THREE), _check_size),
    "interpolation": _one_of("bicubic", "bilinear"),
    "crop_pct": _float(ge=1, le=1),  # as this package trains: no part of an image is cut off
    "crop_mode": _one_of("squash"),
    "mean": _list(_float(ge=0, lt=10), **THREE),
    "std": _list(_float(ge=0.001, lt=10), **THREE),
    "custom_load": _maybe(_one_of(False)),
    "fixed_input_size": _maybe({"type": "bool"}),
    "pool_size": _maybe(_list(_int())),
    "first_conv": LAYER,
    "classifier": LAYER,
}

# As `to_dict` of each writes it.
OPERATING_POINT = {
    "name": NAME,
    "codes": _list(NAME, min_length=1),
    **dict.fromkeys(("target_sensitivity", "threshold", "sensitivity", "specificity"), FRACTION),
    **dict.fromkeys(("n_positive", "n_negative"), COUNT),
}
CALIBRATION = {
    "method": NAME,
    "scale": _list(_float(gt=0, lt=1e6)),
    "bias": _list(_float()),
    "nll": _by_name(_float()),
}
DECISION = {
    "method": NAME,
    "tau": _float(ge=0, le=10),
    "melanoma_weight": _float(ge=0.001, le=1000),
    "priors": _list(_float(gt=0, le=1)),
}
ABSTENTION = {
    "method": _one_of("normalised ViM"),
    "threshold": _float(),
    "false_alarm_rate": FRACTION,
    "residual_weight": _float(gt=0),
    "n_features": _int(ge=1, le=2**20),
    **dict.fromkeys(("centre", "directions"), _text()),
}

# The root key `lesion`: what this package adds to timm's layout. Entries that it does not know are not read.
NAMES = [
    "package_version",
    "run_id",
    "dataset",
    "protocol",
    "base_model",
    "license",
    "data_fingerprint",
    "splits_sha256",
]
LESION = {
    "weights_sha256": SHA256,
    "onnx_sha256": _maybe(SHA256),
    "config_sha256": _maybe(SHA256),
    **dict.fromkeys(NAMES, _maybe(NAME)),
    "synthetic": _maybe({"type": "bool"}),
    "calibration": _maybe(_object(CALIBRATION)),  # folded into the weights
    "decision": _maybe(_object(DECISION)),
    "operating_points": _maybe(_list(_object(OPERATING_POINT), max_length=MAX_OPERATING_POINTS)),
    "abstention": _maybe(_object(ABSTENTION)),
    "golden": _maybe({"type": "dict", "keys_schema": _text()}),
}

# All else would be for somebody else to obey: model_args, auto_map, url, file and more.
CONFIG = {
    "architecture": _text(pattern=r"^[a-z0-9_]+$", max_length=MAX_TEXT),
    "num_classes": _int(),
    "num_features": _maybe(_int()),
    "label_names": _list(NAME, min_length=2, max_length=MAX_CLASSES),
    "label_descriptions": _by_name(NAME),
    "pretrained_cfg": _object(PREPROCESSING),
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
    names = config["label_names"]
    of_points = {code for point in config["lesion"].get("operating_points") or [] for code in point["codes"]}
    problem = ""
    if len(set(names)) < len(names):
        problem = "label_names must be different names"
    elif config["num_classes"] != len(names):
        problem = f"num_classes is {config['num_classes']}, but there are {len(names)} label_names"
    elif not of_points <= {*names}:
        problem = f"an operating point is of {shortened(sorted(of_points - {*names})[0])}, which is no label_name"
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
