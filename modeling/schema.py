"""What config.json may hold: one declared schema, since a stranger may have written it."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from modeling.files import MAX_TEXT, ModelFolderError, is_name, shortened

CONFIG_SCHEMA = 2  # 1 said wanted_sensitivity
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_OPERATING_POINTS = 100


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be 1 to {MAX_TEXT} printable characters")
    return text


Name = Annotated[str, AfterValidator(_check_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Strict(BaseModel):
    """No other entries, and no number where a text is due or the other way round."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Preprocessing(_Strict):
    """`pretrained_cfg`: what timm and transformers build the preprocessing from, and where the network's ends are."""

    input_size: Annotated[list[int], Field(min_length=3, max_length=3)]
    interpolation: Literal["bicubic", "bilinear"]
    crop_pct: Annotated[float, Field(ge=1, le=1)]  # as this package trains: no part of an image is cut off
    crop_mode: Literal["squash"]
    mean: Annotated[list[Annotated[float, Field(ge=0, lt=10)]], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(ge=0.001, lt=10)]], Field(min_length=3, max_length=3)]
    custom_load: Literal[False] = False
    fixed_input_size: bool | None = None
    pool_size: list[int] | None = None
    first_conv: str | list[str] | None = None
    classifier: str | list[str] | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        channels, height, width = self.input_size
        if channels != 3 or height != width or not 16 <= height <= MAX_SIZE_PX:
            raise ValueError(f"input_size must be [3, S, S] with S from 16 to {MAX_SIZE_PX}")
        return self


class OperatingPointEntry(_Strict):
    """As `OperatingPoint.to_dict` writes it."""

    name: Name
    codes: Annotated[list[Name], Field(min_length=1)]
    target_sensitivity: Fraction
    threshold: Fraction
    sensitivity: Fraction
    specificity: Fraction
    n_positive: Count
    n_negative: Count


class CalibrationEntry(_Strict):
    """As `Calibration.to_dict` writes it."""

    method: Name
    scale: list[Annotated[float, Field(gt=0, lt=1e6)]]
    bias: list[float]
    nll: dict[Name, float]


class DecisionEntry(_Strict):
    """As `Decision.to_dict` writes it."""

    method: Name
    tau: Annotated[float, Field(ge=0, le=10)]
    melanoma_weight: Annotated[float, Field(ge=0.001, le=1000)]
    priors: list[Annotated[float, Field(gt=0, le=1)]]


class AbstentionEntry(_Strict):
    """As `AbstentionRule.to_dict` writes it."""

    method: Literal["normalised ViM"]
    threshold: float
    false_alarm_rate: Fraction
    residual_weight: Annotated[float, Field(gt=0)]
    n_features: Annotated[int, Field(ge=1, le=2**20)]
    centre: str
    directions: str


class LesionEntry(_Strict):
    """The root key `lesion`: what this package adds to timm's layout. Entries that it does not know are not read."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, defer_build=True)

    weights_sha256: Sha256
    onnx_sha256: Sha256 | None = None
    config_sha256: Sha256 | None = None
    package_version: Name | None = None
    run_id: Name | None = None
    dataset: Name | None = None
    protocol: Name | None = None
    base_model: Name | None = None
    license: Name | None = None
    data_fingerprint: Name | None = None
    splits_sha256: Name | None = None
    synthetic: bool | None = None
    calibration: CalibrationEntry | None = None  # folded into the weights
    decision: DecisionEntry | None = None
    operating_points: Annotated[list[OperatingPointEntry], Field(max_length=MAX_OPERATING_POINTS)] | None = None
    abstention: AbstentionEntry | None = None
    golden: dict[str, Any] | None = None


class ConfigFile(_Strict):
    """config.json; all else would be for somebody else to obey: model_args, auto_map, url, file and more."""

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=MAX_TEXT)]
    num_classes: int
    num_features: int | None = None
    label_names: Annotated[list[Name], Field(min_length=2, max_length=MAX_CLASSES)]
    label_descriptions: dict[str, Name]
    pretrained_cfg: Preprocessing
    lesion: LesionEntry

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if len(set(self.label_names)) < len(self.label_names):
            raise ValueError("label_names must be different names")
        if self.num_classes != len(self.label_names):
            raise ValueError(f"num_classes is {self.num_classes}, but there are {len(self.label_names)} label_names")
        unknown = {code for point in self.lesion.operating_points or [] for code in point.codes} - {*self.label_names}
        if unknown:
            raise ValueError(f"an operating point is of {shortened(sorted(unknown)[0])}, which is no label_name")
        return self


def check(schema: type[BaseModel], content: Any, where: str) -> None:
    """Compare a JSON value with a schema.

    Raises:
        ModelFolderError: With the first entry that does not fit, and `where` it stands.
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        entry = ".".join(shortened(part).strip("'") for part in first["loc"])
        value = (
            "" if first["type"] in ("missing", "extra_forbidden") or not entry else f", got {shortened(first['input'])}"
        )
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = (
                "this package never writes such an entry; refused, since other programs take from such entries what to "
                "build, download or run"
            )
        more = f" ({len(others)} more entries do not fit)" if others else ""
        raise ModelFolderError(f"{where}: {entry}{': ' if entry else ''}{message}{value}{more}.") from None
