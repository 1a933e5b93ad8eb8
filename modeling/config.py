"""The content of a model folder's config.json: timm's Hub layout plus one root key, `lesion`."""

from typing import Annotated, Any, Literal, TypedDict

from modeling.abstention import AbstentionRule
from modeling.calibration import Calibration
from modeling.files import MAX_TEXT, ModelFolderError, shortened
from modeling.operating_points import OperatingPoint
from modeling.schema import Name, Sha256, bounds, checked

CONFIG_SCHEMA = 4  # probabilities at equal priors, class_priors, the ONNX output `evidence`
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_OPERATING_POINTS = 100


def _check_size(size: list[int]) -> list[int]:
    channels, height, width = size
    if channels != 3 or height != width or not 16 <= height <= MAX_SIZE_PX:
        raise ValueError(f"must be [3, S, S] with S from 16 to {MAX_SIZE_PX}")
    return size


_THREE = bounds(min_length=3, max_length=3)


class PretrainedCfg(TypedDict):
    """The preprocessing, and the names of the first and last layers, for timm and transformers."""

    input_size: Annotated[Annotated[list[int], _THREE], _check_size]
    interpolation: Literal["bicubic", "bilinear"]
    crop_pct: Annotated[float, bounds(ge=1, le=1)]  # no part of an image is cut off
    crop_mode: Literal["squash"]
    mean: Annotated[list[Annotated[float, bounds(ge=0, lt=10)]], _THREE]
    std: Annotated[list[Annotated[float, bounds(ge=0.001, lt=10)]], _THREE]
    custom_load: Literal[False] | None
    fixed_input_size: bool | None
    pool_size: list[int] | None
    first_conv: str | list[str] | None
    classifier: str | list[str] | None


class Lesion(TypedDict):
    """What this package adds to timm's layout."""

    schema: Literal[4]
    weights_sha256: Sha256
    onnx_sha256: Sha256 | None
    config_sha256: Sha256 | None
    package_version: Name | None
    run_id: Name | None
    dataset: Name | None
    protocol: Name | None
    base_model: Name | None
    license: Name | None
    data_fingerprint: Name | None
    splits_sha256: Name | None
    synthetic: bool | None
    class_priors: dict[Name, Annotated[float, bounds(gt=0, le=1)]] | None  # fraction of each diagnosis in train and val
    calibration: Calibration | None  # already folded into the weights
    operating_points: Annotated[list[OperatingPoint], bounds(max_length=MAX_OPERATING_POINTS)] | None
    abstention: AbstentionRule | None


class Config(TypedDict):
    """Everything else is refused: timm or transformers might act on it (model_args, auto_map, url, file and more)."""

    architecture: Annotated[str, bounds(pattern="^[a-z0-9_]+$", max_length=MAX_TEXT)]
    num_classes: int
    num_features: int | None
    label_names: Annotated[list[Name], bounds(min_length=2, max_length=MAX_CLASSES)]
    label_descriptions: dict[str, Name]
    pretrained_cfg: PretrainedCfg
    lesion: Lesion


def checked_config(content: dict[str, Any], where: str) -> Config:
    """Return the content of a config.json, its fitted objects built.

    Raises:
        ModelFolderError: With the first entry that does not fit, and `where` it is.
    """
    config = checked(Config, content, where)
    names, lesion = config["label_names"], config["lesion"]
    n, points, calibration = len(names), lesion.get("operating_points") or [], lesion.get("calibration")
    priors = lesion.get("class_priors") or dict.fromkeys(names, 1 / n)
    unknown = min({code for point in points for code in point.codes} - set(names), default=None)
    problems = {
        "label_names must be different names": len(set(names)) < n,
        f"num_classes is {config['num_classes']}, but there are {n} label_names": config["num_classes"] != n,
        f"an operating point is of {shortened(unknown)}, which is no label_name": unknown is not None,
        "operating points must have different names": len({point.name for point in points}) < len(points),
        f"calibration must have a number for each of the {n} label_names": calibration is not None
        and not len(calibration.scale) == len(calibration.bias) == n,
        "class_priors must have a fraction for each label_name, and sum to 1": set(priors) != set(names)
        or abs(sum(priors.values()) - 1) > 1e-6,
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise ModelFolderError(f"{where}: {found[0]}.")
    return config
