"""The content of a model folder's config.json: timm's Hub layout plus one root key, `lesion`."""

from typing import Annotated, Literal, NotRequired, TypedDict

from modeling.abstention import AbstentionRule
from modeling.calibration import Calibration
from modeling.files import MAX_TEXT
from modeling.operating_points import OperatingPoint
from modeling.schema import Name, Sha256, bounds

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
    custom_load: NotRequired[Literal[False] | None]
    fixed_input_size: NotRequired[bool | None]
    pool_size: NotRequired[list[int] | None]
    first_conv: NotRequired[str | list[str] | None]
    classifier: NotRequired[str | list[str] | None]


class Lesion(TypedDict):
    """What this package adds to timm's layout."""

    schema: Literal[4]
    weights_sha256: Sha256
    onnx_sha256: NotRequired[Sha256 | None]
    config_sha256: NotRequired[Sha256 | None]
    package_version: NotRequired[Name | None]
    run_id: NotRequired[Name | None]
    dataset: NotRequired[Name | None]
    protocol: NotRequired[Name | None]
    base_model: NotRequired[Name | None]
    license: NotRequired[Name | None]
    data_fingerprint: NotRequired[Name | None]
    splits_sha256: NotRequired[Name | None]
    synthetic: NotRequired[bool | None]
    class_priors: NotRequired[dict[Name, Annotated[float, bounds(gt=0, le=1)]] | None]  # of train and val
    calibration: NotRequired[Calibration | None]  # already folded into the weights
    operating_points: NotRequired[Annotated[list[OperatingPoint], bounds(max_length=MAX_OPERATING_POINTS)] | None]
    abstention: NotRequired[AbstentionRule | None]


class Config(TypedDict):
    """Everything else is refused: timm or transformers might act on it (model_args, auto_map, url, file and more)."""

    architecture: Annotated[str, bounds(pattern="^[a-z0-9_]+$", max_length=MAX_TEXT)]
    num_classes: int
    num_features: NotRequired[int | None]
    label_names: Annotated[list[Name], bounds(min_length=2, max_length=MAX_CLASSES)]
    label_descriptions: dict[str, Name]
    pretrained_cfg: PretrainedCfg
    lesion: Lesion
