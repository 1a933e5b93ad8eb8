"""metrics.json as it is read: a declared schema, since a stranger may have written the file.

`modeling/evaluation/evaluate.py` writes it and says what each entry means. What is not declared here may come and go.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model

from modeling.files import METRICS_SCHEMA, ModelFolderError, read_json, shortened


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)  # 4.0 is no count, and true is no number


def _section(**entries: Any) -> Any:
    """Declare an object with these entries; one that may be missing is a pair of its type and its default."""
    needed = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in entries.items()}
    return create_model("Section", __base__=_Section, **needed)  # type: ignore[call-overload]


def _all(names: str, kind: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


def _by_name(kind: Any) -> Any:
    return dict[NAME, kind]


def _rows(kind: Any) -> Any:
    return list[kind]


def _or_reason(kind: Any, **entries: Any) -> Any:
    """Declare what was measured, or in its place why it was not."""
    either = _tagged(_section(reason=TEXT, **entries), "not measured") | _tagged(kind, "measured")
    return Annotated[either, Discriminator(lambda value: "not measured" if _has_reason(value) else "measured")]


def _tagged(kind: Any, tag: str) -> Any:
    return Annotated[kind, Tag(tag)]


def _has_reason(value: Any) -> bool:
    return isinstance(value, dict) and "reason" in value


TEXT = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
NAME = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
COUNT = Annotated[int, Field(ge=0, lt=2**53)]
FRACTION = Annotated[float, Field(ge=0, le=1)]

# A value with its 95 % interval; null with a reason where it cannot be estimated.
NUMBER = _section(value=float | None, **_all("low high", (float | None, None)), reason=(TEXT, ""))
RATE = _section(value=FRACTION | None, **_all("low high", (FRACTION | None, None)), reason=(TEXT, ""))

# An expected calibration error beside the middle 95 % of what a perfectly calibrated model would have.
ECE = _section(
    value=FRACTION | None, if_calibrated=(_section(**_all("low high", FRACTION)) | None, None), reason=(TEXT, "")
)
ORIGIN = _section(
    kind=Literal["scratch", "pretrained", "weights"], **_all("name sha256 base_model overlap", (TEXT | None, None))
)

SIZE = _all("n_images n_lesions", COUNT)
DIAGNOSIS = _section(**SIZE, **_all("precision recall specificity f1 auroc average_precision", RATE))
SCORES: dict[str, Any] = {
    **SIZE,
    **_all("accuracy balanced_accuracy macro_f1 macro_auroc weighted_precision weighted_recall weighted_f1", RATE),
    "per_class": _by_name(DIAGNOSIS),
    "confusion": _rows(_rows(COUNT)),
}
CALIBRATION = _section(
    **_all("before after", _section(**_all("nll brier", NUMBER), ece=ECE, ece_per_class=_by_name(ECE)))
)
FAR = {"n_images": COUNT, "auroc": RATE, "fpr_at_95_tpr": FRACTION | None, "abstained": RATE}
CHANGE = {"flip_rate": RATE, "balanced_accuracy": RATE, "balanced_accuracy_gain": NUMBER}
BASELINE = _section(sees=TEXT, balanced_accuracy=RATE, accuracy=RATE, model_minus_baseline=NUMBER)
MAP = _section(**_all("heat_inside pointing_game iou", RATE))

EPOCH = _section(epoch=COUNT, **_all("train/loss val/loss val/balanced_accuracy val/accuracy", float))
QUARTILES = _section(**_all("lower_quartile median upper_quartile", float | None))
COMPARED = _section(**_all("internal external difference", NUMBER))
EXTERNAL = _section(
    compared_by=TEXT,
    left_out=_by_name(COUNT),
    headline=_or_reason(_by_name(COMPARED)),
    calibration=_by_name(_section(**_all("excess_probability slope", NUMBER))),
    thresholds=_by_name(_section(stored=FRACTION, needed=_section(threshold=FRACTION | None))),
    mix=_or_reason(_by_name(_by_name(_section(**_all("internal external", FRACTION | None))))),
    image_properties=_or_reason(_by_name(_section(**_all("internal external", QUARTILES)))),
    accuracy_at_internal_mix=RATE,
    challenge=_or_reason(_section(n_images=COUNT, mean_recall=RATE, recall=_by_name(RATE), note=TEXT)),
)

METRICS: type[_Section] = _section(
    schema_version=Literal[METRICS_SCHEMA],
    model=_section(
        codes=Annotated[_rows(NAME), Field(min_length=2, max_length=1000)],
        names=_by_name(NAME),
        architecture=NAME,
        **_all("image_size_px n_parameters", COUNT),
        weights_sha256=SHA256,
        **_all("license run_id package_version revision", NAME | None),
    ),
    data=_section(
        **_all("dataset fingerprint", NAME | None),
        synthetic=bool,
        splits_sha256=SHA256,
        protocol=Literal["lesion", "original", "given", "external"],
        split_unit=NAME,
        leakage=_by_name(FRACTION | None),
        flow=_section(
            **_all("in_dataset skipped", COUNT),
            other_diagnoses=_by_name(COUNT),
            splits=_by_name(_section(**SIZE, per_class=_by_name(COUNT))),
        ),
        sources=_by_name(COUNT),
    ),
    intervals=_section(**_all("method unit", TEXT), level=FRACTION, **_all("n_replicates seed", COUNT)),
    val=_or_reason(_section(**SCORES)),
    test=_section(**SCORES, by_lesion=_section(**SCORES)),
    calibration=_section(
        fitted=_or_reason(
            _section(method=NAME, **_all("scale bias", _rows(float)), nll=_by_name(Annotated[float, Field(ge=0)]))
        ),
        val=_or_reason(CALIBRATION),
        test=CALIBRATION,
    ),
    operating_points=_rows(
        _or_reason(
            _section(
                name=NAME,
                codes=_rows(NAME),
                **_all("target_sensitivity threshold", FRACTION),
                val=_section(**_all("sensitivity specificity", FRACTION)),
                test=_section(
                    **_all("n_positive_images n_positive_lesions", COUNT),
                    **_all("sensitivity specificity", RATE),
                    at_prevalence=_rows(_section(prevalence=FRACTION, of=TEXT, **_all("ppv npv", RATE))),
                ),
            ),
            name=NAME,
        )
    ),
    abstention=_or_reason(
        _section(
            method=NAME,
            threshold=float,
            false_alarm_rate=FRACTION,
            test=_section(
                abstained=RATE, answered=_section(n_images=COUNT, **_all("accuracy balanced_accuracy", RATE))
            ),
            near=_by_name(
                _section(**FAR, malignant=bool, n_lesions=COUNT, predicted=_by_name(COUNT), above=_by_name(RATE))
            ),
            far=_by_name(_section(**FAR, chose_the_score=bool)),
        )
    ),
    risk_coverage=_section(aurc=FRACTION, risk_at_coverage=_by_name(FRACTION)),
    baselines=_or_reason(_section(**_all("metadata_only majority", BASELINE))),
    groups=_section(
        **_all("source sex age_years site", _by_name(_section(n_images=COUNT))), not_measured=_by_name(TEXT)
    ),
    robustness=_section(**SIZE, sample=TEXT, balanced_accuracy=RATE, changes=_by_name(_section(**CHANGE))),
    test_time_augmentation=_section(**CHANGE, **_all("views n_images", COUNT), sample=TEXT),
    heat_maps=_section(
        masks=_or_reason(
            _section(
                **SIZE,
                n_without_mask=COUNT,
                mean_lesion_fraction=FRACTION,
                **_all("model centred_blob", MAP),
                off_centre=_or_reason(_section(n_images=COUNT, **_all("model centred_blob", MAP))),
                similarity_to_randomised=NUMBER,
            )
        ),
        road=_section(**SIZE, **_all("model centred_blob", NUMBER)),
    ),
    failures=_section(
        most_confident=_rows(_section(**_all("image_id label predicted", NAME), probability=FRACTION)),
        missed=_by_name(_section(n_images=COUNT, image_ids=_rows(NAME))),
    ),
    reference=_rows(_by_name(Any)) | _section(reason=TEXT),
    image_properties=_section(**_all("long_side_px sharpness jpeg_quality brightness", QUARTILES)),
    external=(EXTERNAL | None, None),  # only of an external evaluation
    training=_section(
        options=_by_name(Any),
        history=_rows(EPOCH),
        best_epoch=COUNT | None,
        selection=NAME,
        origin=(ORIGIN | None, None),
    ),
    figures=_rows(Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}\.png$")]),
)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics.json of this version's schema.

    Raises:
        ModelFolderError: If it is not that; names the entry.
    """
    content = read_json(path)
    advice = f"remove it and make it anew with `python -m modeling.evaluation MODEL --output {path.parent}`."
    if content.get("schema_version") != METRICS_SCHEMA:
        raise ModelFolderError(
            f"{path} is of schema {shortened(content.get('schema_version'))} and this version reads {METRICS_SCHEMA}; {advice}"
        )
    problem = _problem(content)
    if problem:
        raise ModelFolderError(f"{path} is damaged: {problem}; {advice}")
    return content


def _problem(content: dict[str, Any]) -> str | None:
    """Return what is wrong with a content, in words, or None."""
    try:
        METRICS.model_validate(content)
    except RecursionError:
        return "it is nested too deeply"
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("not measured", "measured"))
        return f"{shortened(place)}: {first['msg'].removesuffix(' or instance of Section')[:200]}"
    codes, test = content["model"]["codes"], content["test"]
    for name, scores in {"test": test, "test.by_lesion": test["by_lesion"], "val": content["val"]}.items():
        if _has_reason(scores):
            continue
        shape = [len(row) for row in scores["confusion"]]
        if set(scores["per_class"]) != set(codes) or shape != [len(codes)] * len(codes):
            return f"{name} is not about the diagnoses of model.codes"
    return None
