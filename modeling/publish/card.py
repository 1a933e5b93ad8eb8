"""Render the model card and its second level from metrics.json and config.json."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from modeling.files import ROOT, ModelFolderError, write_json
from modeling.formatting import format_estimate, format_number
from modeling.labels import ATTRIBUTION, NOTICE, SYNTHETIC_NOTICE, diagnosis_of
from modeling.metrics_file import read_metrics
from modeling.model_folder import METRICS_NAME, UNKNOWN_ORIGIN, read_config
from modeling.publish.hub import PublishError

CARD_NAME, EVALUATION_NAME = "README.md", "evaluation.md"
TEMPLATES = {CARD_NAME: "model_card.md", EVALUATION_NAME: "evaluation_card.md"}  # at the top of the repository
EXTERNAL = "external"  # folder of external validations in a model folder, one metrics.json a dataset
# Entries of the model index: the Hub's name of a metric, and ours.
RESULTS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1": "macro_f1",
    "roc_auc": "macro_auroc",
    "precision": "weighted_precision",
    "recall": "weighted_recall",
}
CARD_REPO_ID = "me/skin-lesion-b0"  # stands in the card for the repository until it is pushed


def add_external(model_folder: str | Path, files: Sequence[str | Path]) -> None:
    """Keep the metrics.json of external validations in a model folder, one a dataset, for its card.

    Raises:
        PublishError: If a file is none or is of another model, or two are of one dataset.
    """
    folder = Path(model_folder)
    try:
        weights_sha256 = read_config(folder)["lesion"]["weights_sha256"]
        all_metrics = {file: read_metrics(file) for file in map(Path, files)}
    except ModelFolderError as error:
        raise PublishError(str(error)) from error
    contents: dict[str, dict[str, Any]] = {}
    for file, metrics in all_metrics.items():
        if not metrics.get("external"):
            raise PublishError(
                f"{file} is no external validation; make one with `python -m modeling.evaluation {folder} --dataset DATASET "
                "--external`."
            )
        if metrics["model"]["weights_sha256"] != weights_sha256:
            raise PublishError(f"{file} is of other weights than {folder}; evaluate this model.")
        name = re.sub(r"[^a-z0-9]+", "-", str(metrics["data"]["dataset"]).lower()).strip("-") or "data"
        if name in contents:
            raise PublishError(
                f"{file} and another of these files are both of a dataset called {name!r}, of which the card can show one: "
                "leave one out, or evaluate again with a folder of another name."
            )
        contents[name] = metrics
    (folder / EXTERNAL).mkdir(exist_ok=True)
    for name, metrics in contents.items():
        write_json(folder / EXTERNAL / f"{name}.json", metrics)


def write_card(model_folder: str | Path) -> Path:
    """Write `README.md` and `evaluation.md` of a model folder, each whole or not at all, and return the path of the first."""
    folder = Path(model_folder)
    for name, content in render_card(folder).items():
        unfinished = folder / f"{name}.part"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(folder / name)
    return folder / CARD_NAME


def render_card(model_folder: str | Path) -> dict[str, str]:
    """Render the model card and its second level, `evaluation.md`, from a folder's `metrics.json` and `config.json` alone.

    Returns:
        The content of each file, by its name in the model folder.

    Raises:
        PublishError: If a file or a template is missing, or a template names something that is not in these files.
    """
    folder = Path(model_folder)
    try:
        config = read_config(folder)
        metrics = read_metrics(folder / METRICS_NAME) if (folder / METRICS_NAME).is_file() else None
        externals = [read_metrics(file) for file in sorted((folder / EXTERNAL).glob("*.json"))]
    except ModelFolderError as error:
        raise PublishError(str(error)) from error
    if metrics is None:
        raise PublishError(
            f"{folder} has no {METRICS_NAME}; make it with `python -m modeling.evaluation {folder} --data_dir DIR "
            f"--output {folder}`."
        )
    if metrics.get("external"):
        raise PublishError(
            f"{folder / METRICS_NAME} is an external validation; give it to `python -m modeling.publish card {folder} "
            "--external FILE` and put the model's own there."
        )
    missing = [template for template in TEMPLATES.values() if not (ROOT / template).is_file()]
    if missing:
        raise PublishError(
            f"{ROOT} has no {' and no '.join(missing)}: install from a clone of the repository with `pip install -e`."
        )
    templates = {name: _template(ROOT, template) for name, template in TEMPLATES.items()}
    try:
        bodies = {
            name: template.render(
                metrics=metrics,
                externals=externals,
                start=start_sentence(metrics["training"].get("origin"), config["lesion"].get("base_model")),
                split=split_sentence(metrics["data"]),
                license=config["lesion"].get("license"),
                diagnoses=[diagnosis_of(code) for code in config["label_names"]],
                notice=NOTICE,
                synthetic_notice=SYNTHETIC_NOTICE,
                attribution=ATTRIBUTION,
                repo_id=CARD_REPO_ID,
            )
            for name, template in templates.items()
        }
        metadata = _card_metadata(config, metrics, externals).to_yaml()
    except Exception as error:  # an entry that is missing or of another kind fails in as many ways as it is used
        raise PublishError(
            f"{folder / METRICS_NAME} does not go with the card's templates ({type(error).__name__}: {str(error)[:300]}): it is "
            f"damaged or of another version; make it anew with `python -m modeling.evaluation {folder} --data_dir DIR "
            f"--output {folder}`."
        ) from error
    pages = {name: re.sub(r"\n{3,}", "\n\n", body.strip()) + "\n" for name, body in bodies.items()}
    return {**pages, CARD_NAME: f"---\n{metadata}\n---\n\n{pages[CARD_NAME]}"}


def start_sentence(origin: Mapping[str, Any] | None, base_model: str | None) -> str:
    """Say what training started from, as far as it was recorded; never what it did not start from."""
    if origin is None and base_model is None:
        return "What training started from was not recorded."
    if origin is None:
        return f"Training started from the weights `{base_model}`."
    if origin["kind"] == "scratch":
        return "Training started from random weights."
    if origin["kind"] == "pretrained":
        return f"Training started from the ImageNet weights `{base_model or origin['name']}`."
    parent = origin["base_model"]
    return (
        f"Training started from the weights `{origin['name']}` (sha256 `{origin['sha256'][:12]}`; "
        f"{parent if parent == UNKNOWN_ORIGIN else f'of or from `{parent}`'}). Images of val and test among those that these "
        f"weights were trained on: {origin['overlap']}."
    )


def split_sentence(data: Mapping[str, Any]) -> str:
    """Say what was kept apart, and whether the scores can be trusted for it."""
    unit = {
        "lesion": "The unit of the split is the **lesion**: all images of a lesion are in one split, and images without a lesion "
        "id are grouped with their near-duplicates.",
        "given": "The split is the dataset's own, used as it is; lesions are told apart by their ids, and images without one by "
        "near-duplicates.",
        "original": "The unit of the split is the **image**, drawn at random as by the reference system.",
    }[data["protocol"]]
    rate = data["leakage"]["overall"]
    leak = f"Leakage rate (test images whose lesion is also in train): {format_number(rate)}."
    return f"{unit} {leak}{' **So the scores are too good**, and are here for comparison only.' if rate else ''}"


@cache
def _template(root: Path, name: str) -> Any:
    # Imported late: publishing the Space does not need it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(root), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "estimate": _estimate, "count": "{:,}".format, "cell": _cell}
    return environment.get_template(name)


def _card_metadata(
    config: Mapping[str, Any], metrics: Mapping[str, Any], externals: Sequence[Mapping[str, Any]]
) -> ModelCardData:
    """Return the front matter, by the Hub client's own classes so that the Hub can read it."""
    model, data = metrics["model"], metrics["data"]
    dataset = str(data["dataset"])
    sources = ", ".join(data["sources"])
    name = {"isic2019": f"ISIC 2019 (sources {sources})", "demo": "synthetic drawings"}.get(dataset, dataset)
    results = _results(metrics, f"{name}, split by {data['split_unit']}")
    for external in externals:
        results += _results(external, f"{external['data']['dataset']}, external validation")
    tags = [
        "dermatology",
        "dermoscopy",
        "skin-lesion",
        "melanoma",
        "medical-imaging",
        "calibration",
        "timm",
        "transformers",
    ]
    return ModelCardData(
        license=config["lesion"].get("license"),
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=config["lesion"].get("base_model"),
        datasets=[dataset],
        metrics=list(RESULTS),
        tags=[*tags, *(["synthetic"] if data["synthetic"] else [])],
        model_name=f"skin-lesion-{model['architecture']}",
        eval_results=results or None,
    )


def _results(metrics: Mapping[str, Any], dataset_name: str) -> list[EvalResult]:
    """Return the entries of the model index for one test."""
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=str(metrics["data"]["dataset"]),
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type=kind,
            metric_name=name.replace("_", " ").capitalize().replace("auroc", "AUROC").replace("f1", "F1"),
            metric_value=metrics["test"][name]["value"],
        )
        for kind, name in RESULTS.items()
        if metrics["test"][name]["value"] is not None
    ]


def _estimate(value: Mapping[str, Any]) -> str:
    """Write a number with its interval for a table: no-break spaces, or narrow columns would tear intervals apart."""
    text = format_estimate(value)
    return _cell(text) if value["value"] is None else text.replace(" ", "\u00a0")


def _cell(value: Any) -> str:
    """Keep a value from breaking a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
