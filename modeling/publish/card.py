"""Render the model card, its second level and the notebook from the metrics.json and config.json of a model folder."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from modeling.files import ROOT, ModelFolderError, read_json
from modeling.formatting import format_estimate, format_number
from modeling.labels import ATTRIBUTION, NOTICE, SYNTHETIC_NOTICE, diagnosis_of
from modeling.metrics_file import read_metrics_of
from modeling.model_folder import EXAMPLES_NAME, EXTERNAL_NAME, METRICS_NAME, read_config
from modeling.publish.hub import PublishError

CARD_NAME, EVALUATION_NAME, NOTEBOOK_NAME = "README.md", "evaluation.md", "notebook.ipynb"
TEMPLATES = {CARD_NAME: "model_card.md", EVALUATION_NAME: "evaluation_card.md"}  # at the top of the repository
SENTENCES = "card_sentences.md"  # of both
NOTEBOOK_TEMPLATE = Path(__file__).with_name(NOTEBOOK_NAME)
THIS_FOLDER = "path/to/this/folder"  # in these files until a push writes the repository's name there
# Other runs of the same recipe: {"seeds": [{"seed": 42, "macro_auroc": 0.94, …}, …], "elsewhere": [{"Trained on": …}, …]}
SEEDS_NAME = "seeds.json"
# The Hub's name of a metric in the model index, and ours.
RESULTS = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "f1": "macro_f1", "roc_auc": "macro_auroc"}
TITLES = {
    "seed": "Seed",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy at the dataset's mix",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "MEL/recall": "Melanoma recall",
    "NV/recall": "Nevus recall",
    "MEL/auroc": "Melanoma AUROC",
    "MEL@95/sensitivity": "MEL@95: sensitivity",
    "MEL@95/specificity": "MEL@95: specificity",
    "ece": "ECE at the dataset's mix",
}
TAGS = [
    "dermatology",
    "dermoscopy",
    "skin-lesion",
    "melanoma",
    "medical-imaging",
    "calibration",
    "timm",
    "transformers",
]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(model_folder: str | Path) -> Path:
    """Write the card, evaluation.md and the notebook of a model folder; return the card's path."""
    folder = Path(model_folder)
    for name, content in {**render_card(folder), NOTEBOOK_NAME: render_notebook(folder)}.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / CARD_NAME


def render_card(model_folder: str | Path) -> dict[str, str]:
    """Render the model card and its second level, `evaluation.md`; return the content of each file by its name.

    Raises:
        PublishError: If a file is missing, or a template names something that is not in these files.
    """
    folder = Path(model_folder)
    advice = f"make it with `python -m modeling.evaluation {folder} --data_dir DIR --output {folder}`."
    if not (folder / METRICS_NAME).is_file():
        raise PublishError(f"{folder} has no {METRICS_NAME}; {advice}")
    own = sorted(file for file in folder.glob("external/*") if EXTERNAL_NAME.fullmatch(f"external/{file.name}"))
    try:
        config = read_config(folder)
        lesion, codes = config["lesion"], config["label_names"]
        metrics, *externals = [
            read_metrics_of(file, codes, lesion["weights_sha256"]) for file in (folder / METRICS_NAME, *own)
        ]
        others = read_json(folder / SEEDS_NAME) if (folder / SEEDS_NAME).exists() else {}
        examples = read_examples(folder) if (folder / EXAMPLES_NAME).exists() else {}
    except ModelFolderError as error:
        raise PublishError(str(error)) from error
    if metrics.get("external"):
        raise PublishError(f"{folder / METRICS_NAME} is an external validation, not the model's own scores; {advice}")
    if not all(other.get("external") for other in externals):
        raise PublishError(f"{folder / 'external'} has scores that are no external validation; remove them.")
    facts = {
        "metrics": metrics,
        "externals": externals,
        "seeds": others.get("seeds"),
        "elsewhere": others.get("elsewhere"),
        "examples": examples,
        "base_model": lesion.get("base_model"),
        "license": lesion.get("license"),
        "titles": TITLES,
    }
    facts = escaped(facts) | {
        "diagnoses": [diagnosis_of(code) for code in escaped(codes)],
        "name_of": {code: diagnosis_of(code).name for code in escaped(list(metrics["abstention"].get("near", {})))},
        "hub_dataset": _hub_dataset(metrics["data"]),
        "repo_id": THIS_FOLDER,
        "notice": NOTICE,
        "synthetic_notice": SYNTHETIC_NOTICE,
        "attribution": ATTRIBUTION,
    }
    try:
        say = _template(ROOT, SENTENCES).module
        training = facts["metrics"]["training"]
        facts["start"] = say.start(training.get("origin"), facts["base_model"], bool(training.get("history"))).strip()
        facts["split"] = say.split(facts["metrics"]["data"]).strip()
        bodies = {name: _template(ROOT, template).render(facts) for name, template in TEMPLATES.items()}
        metadata = _card_metadata(lesion, metrics, externals, examples).to_yaml()
    except Exception as error:  # an entry that is missing or of another kind fails in as many ways as it is used
        what = f"{type(error).__name__}: {str(error)[:300]}"
        raise PublishError(f"{folder / METRICS_NAME} does not fit the card's templates ({what}); {advice}") from error
    pages = {name: re.sub(r"\n{3,}", "\n\n", body.strip()) + "\n" for name, body in bodies.items()}
    return {**pages, CARD_NAME: f"---\n{metadata}\n---\n\n{pages[CARD_NAME]}"}


def escaped(value: Any) -> Any:
    """Return a copy of JSON values in which no text is HTML, Markdown or the end of a table cell."""
    if isinstance(value, str):
        return re.sub(r"[|`*\[\]\\]", lambda found: f"&#{ord(found[0])};", html.escape(value, quote=False))
    if isinstance(value, Mapping):
        return {escaped(key): escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list | tuple) else value


def render_notebook(model_folder: Path) -> str:
    """Return a notebook that runs the network with ONNX Runtime, without torch, and shows an answer and a heat map."""
    text, photo = NOTEBOOK_TEMPLATE.read_text(encoding="utf-8"), '"lesion.jpg"'
    if (model_folder / EXAMPLES_NAME).exists():
        photo = f'get("examples/{read_examples(model_folder)["examples"][0]["file"]}")'
    return text.replace('\\"lesion.jpg\\"', json.dumps(photo)[1:-1]).replace("me/skin-lesion", THIS_FOLDER)


def read_examples(folder: Path) -> dict[str, Any]:
    """Read the list of a model folder's example images.

    Raises:
        ModelFolderError: If it is not {"examples": [{"file", "diagnosis"}, …], "license", "attribution"}.
    """
    listed = read_json(folder / EXAMPLES_NAME)
    entries = listed.get("examples")
    names = [entry.get("file") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    valid = names and all(isinstance(name, str) and re.fullmatch(r"[\w-]+\.(jpg|png)", name) for name in names)
    if not valid or not all(isinstance(listed.get(key), str) for key in ("license", "attribution")):
        raise ModelFolderError(
            f"{folder / EXAMPLES_NAME} is damaged: it needs examples with a file, license and attribution."
        )
    return listed


@cache
def _template(root: Path, name: str) -> Any:
    # Imported late: publishing the Space does not need it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(root)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": format_number, "estimate": _estimate, "count": "{:,}".format}
    return environment.get_template(name)


def _estimate(value: Mapping[str, Any]) -> str:
    """Write a number with its interval: no-break spaces, or narrow columns would tear intervals apart."""
    text = format_estimate(value)
    return text if value["value"] is None else text.replace(" ", "\u00a0")


# ---- Front matter ----------------------------------------------------------------------------------------------------


def _hub_dataset(data: Mapping[str, Any]) -> bool:
    return bool(HUB_ID.fullmatch(str(data["dataset"]))) and not data["synthetic"]


def _card_metadata(
    lesion: Mapping[str, Any],
    metrics: Mapping[str, Any],
    externals: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Any],
) -> ModelCardData:
    """Return the front matter, by the Hub client's own classes so that the Hub can read it."""
    data, fields = metrics["data"], dict[str, Any]()
    names = {"isic2019": f"ISIC 2019 (sources {', '.join(data['sources'])})", "demo": "synthetic images"}
    how = f"test of source {data['test_source']}" if data["test_source"] else f"split by {data['split_unit']}"
    tests = {f"{names.get(data['dataset'], data['dataset'])}, {how}": metrics}
    tests |= {f"{other['data']['dataset']}, external validation": other for other in externals}
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=str(scores["data"]["dataset"]),
            dataset_name=title,
            dataset_split="test",
            metric_type=kind,
            metric_name=TITLES[name],
            metric_value=scores["test"][name]["value"],
        )
        for title, scores in tests.items()
        for kind, name in RESULTS.items()
        if scores["test"][name]["value"] is not None
    ]
    if HUB_ID.fullmatch(lesion.get("base_model") or ""):
        fields |= {"base_model": lesion["base_model"], "base_model_relation": "finetune"}
    if examples:  # what <Gallery /> shows
        of = {entry["file"]: entry.get("diagnosis") for entry in examples["examples"]}
        texts = {file: diagnosis_of(code).name if code else "no lesion" for file, code in of.items()}
        fields["widget"] = [{"text": text, "output": {"url": f"examples/{file}"}} for file, text in texts.items()]
    return ModelCardData(
        license=lesion.get("license"),
        library_name="timm",
        pipeline_tag="image-classification",
        datasets=[data["dataset"]] if _hub_dataset(data) else None,
        metrics=list(RESULTS),
        tags=[*TAGS, *(["synthetic"] if data["synthetic"] else [])],
        model_name=f"skin-lesion-{metrics['model']['architecture']}",
        eval_results=results or None,
        **fields,
    )
