"""Initial weights (`--init_from`): locate them, load them, and check for test-set leakage.

`--init_from` takes model folders, .safetensors files, or Hub repositories as `name@revision`: of this package or in timm's
own layout. Earlier models may have seen the images that a new run tests on, so their splits are compared with the new ones.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modeling.calibration import Calibration
from modeling.data.duplicates import SAME_FILE, SAME_IMAGE_ID, find_known, read_hashes
from modeling.data.splits_file import LeakageError, load_splits, splits_hash
from modeling.files import ModelFolderError, file_sha256, is_name, read_json
from modeling.model_folder import (
    CONFIG_NAME,
    HASHES_NAME,
    RUN_NAME,
    SPLITS_NAME,
    UNKNOWN_ORIGIN,
    WEIGHTS_NAME,
    ModelFolder,
    fetch,
    file_beside,
    file_in,
    read_config,
    resolve_model_folder,
)
from modeling.network import TimmModel
from modeling.training.options import TrainOptions

NOT_SEEN = "none, by image, lesion id and near-duplicates"


@dataclass(frozen=True)
class Origin:
    """Origin of the initial weights, as metrics.json and the card report it."""

    kind: str  # "scratch" (random weights), "pretrained" (timm's weights from the Hub) or "weights" (`--init_from`)
    name: str | None = None  # of the repository, folder or file, or of several; None from scratch
    sha256: str | None = None  # of the weights file, or of each; None from scratch, and where timm downloaded it
    base_model: str | None = None  # Hub id of the model that they are, or were trained from; UNKNOWN_ORIGIN if not said
    overlap: str | None = None  # result of the check against val and test, or why it was not possible


@dataclass(frozen=True)
class Start:
    """Initial weights; where known, also the splits, image hashes and diagnoses of their own training, and the calibration."""

    origin: Origin
    weights: Path | None = None
    splits: Path | None = None
    hashes: Path | None = None
    calibration: Calibration | None = None
    codes: list[str] | None = None  # diagnoses, in the order of the classifier
    run: dict[str, Any] = field(default_factory=dict)  # train_config.json


def find_starts(options: TrainOptions) -> list[Start]:
    """Locate the weights that `--init_from` names; without it, ImageNet weights or none.

    Raises:
        ModelFolderError: If one is neither a .safetensors file, nor a folder or repository that holds such weights.
    """
    if not options.init_from:
        return [Start(Origin("pretrained", options.backbone) if options.pretrained else Origin("scratch"))]
    return [_find_start(name) for name in options.init_from]


def _find_start(named: str) -> Start:
    path = Path(named)
    if path.is_file():
        # The name model.safetensors says nothing; that of its folder does.
        name = path.resolve().parent.name if path.name == WEIGHTS_NAME else path.name
        source, weights = ModelFolder(path.parent, model_id=name, revision=None), path
    else:
        repo_id, _, revision = (named, "", "") if path.is_dir() else named.partition("@")
        try:
            source = resolve_model_folder(repo_id, revision or None)
            weights = fetch(source, WEIGHTS_NAME)
        except ModelFolderError as error:
            raise ModelFolderError(
                f"--init_from: {error} It takes a model folder, a .safetensors file or a Hub repository, REPO or REPO@REVISION."
            ) from error
    config_path = file_in(source.path, CONFIG_NAME)
    config = read_json(config_path) if config_path else {}
    name, base_model = source.model_id, _base_model(config)
    if source.revision is not None:
        name, base_model = f"{source.model_id}@{source.revision}", source.model_id
    # Repositories of others have neither, and an offline machine could not find that out.
    ours = source.revision is None or "lesion" in config
    splits, hashes, run = (file_beside(source, file) if ours else None for file in (SPLITS_NAME, HASHES_NAME, RUN_NAME))
    origin = Origin("weights", name, file_sha256(weights), base_model)
    lesion, calibration = config.get("lesion"), None
    # Other weights beside config.json, such as those of a checkpoint, are not calibrated.
    if isinstance(lesion, dict) and lesion.get("weights_sha256") == origin.sha256 and lesion.get("calibration"):
        calibration = read_config(source.path)["lesion"].get("calibration")
    run_config = read_json(run) if run else {}
    return Start(origin, weights, splits, hashes, calibration, codes=config.get("label_names"), run=run_config)


def _base_model(config: dict[str, Any]) -> str:
    """Return what weights were trained from, by the config.json beside them, of this package or of timm."""
    lesion, preprocessing = config.get("lesion"), config.get("pretrained_cfg")
    base_model = None
    if isinstance(lesion, dict):
        base_model = lesion.get("base_model")
    elif isinstance(preprocessing, dict) and preprocessing.get("tag"):
        base_model = f"timm/{config.get('architecture')}.{preprocessing['tag']}"
    return base_model if isinstance(base_model, str) and is_name(base_model) else UNKNOWN_ORIGIN


def load_starts(model: TimmModel, starts: list[Start], *, codes: list[str] | None = None) -> None:
    """Load the weights; of several, the mean of each tensor (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

    A classifier of another size is left out, unless the weights have to be of `codes`. Calibration is removed.

    Raises:
        ModelFolderError: If a file is damaged, of another network, or not of `codes`; names the first tensors that do not fit.
    """
    found = [_fitting(model, start, start.weights) for start in starts if start.weights is not None]
    for start, tensors in zip(starts, found, strict=False):
        if codes and (start.codes not in (None, codes) or tensors.keys() != model.state_dict().keys()):
            raise ModelFolderError(
                f"--epochs 0: the weights of {start.origin.name} are not of the diagnoses {', '.join(codes)}, in this order."
            )
    together = {key: [tensors[key] for tensors in found if key in tensors] for key in model.state_dict()}
    mean = {key: torch.stack(values).double().mean(0) for key, values in together.items() if values}
    model.load_state_dict(mean, strict=False)  # all that may be missing is the classifier


def _fitting(model: TimmModel, start: Start, weights: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(
            f"--init_from: {weights} is not a .safetensors file, or it is damaged ({error})."
        ) from error
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    fitting = {key: value for key, value in tensors.items() if shapes.get(key) == value.shape}
    classifier = f"{model.pretrained_cfg['classifier']}."
    wrong = {key for key in {*shapes, *tensors} - fitting.keys() if not key.startswith(classifier)}
    if wrong:
        raise ModelFolderError(
            f"--init_from: the weights in {weights} are of another network than --backbone "
            f"{model.pretrained_cfg['architecture']}: {len(wrong)} tensors are missing, unknown or of another shape, such as "
            f"{', '.join(sorted(wrong)[:3])}. Name the --backbone that they are of."
        )
    if start.calibration is not None and {f"{classifier}weight", f"{classifier}bias"} <= fitting.keys():
        scale, bias = (torch.tensor(values) for values in (start.calibration.scale, start.calibration.bias))
        fitting[f"{classifier}weight"] /= scale[:, None]
        fitting[f"{classifier}bias"] = (fitting[f"{classifier}bias"] - bias) / scale
    return fitting


def origin_of(starts: list[Start]) -> Origin:
    """Return the origin of the weights, or of their mean; without what `check_not_seen` finds."""
    first, *others = (start.origin for start in starts)
    for origin in others:
        base_model = first.base_model if origin.base_model == first.base_model else UNKNOWN_ORIGIN
        first = Origin("weights", f"{first.name}, {origin.name}", f"{first.sha256}, {origin.sha256}", base_model)
    return first


def check_not_seen(starts: list[Start], splits: pd.DataFrame, images: pd.DataFrame) -> Origin:
    """Compare the train and val images of earlier weights with the val and test of a new run.

    `splits` are the rows of the new run's splits.csv, `images` those of its image_hashes.csv.

    Returns:
        The origin of the weights, with what was compared.

    Raises:
        LeakageError: If the weights have seen a lesion of val or test; names the way out.
    """
    overlaps = [_overlap(start, splits, images) for start in starts if start.weights is not None]
    return replace(origin_of(starts), overlap=min(overlaps, default=None))  # "could not be checked" comes before "none"


def _overlap(start: Start, splits: pd.DataFrame, images: pd.DataFrame) -> str:
    if start.splits is None or start.hashes is None:
        missing = SPLITS_NAME if start.splits is None else HASHES_NAME
        return f"could not be checked, since the weights of {start.origin.name} come without {missing}"
    before = load_splits(start.splits)[["image_id", "split"]].merge(read_hashes(start.hashes), "left", "image_id")
    if before["hash"].isna().any():
        return f"could not be checked, since {HASHES_NAME} lacks images of {SPLITS_NAME}"
    same_names = bool(images["sha256"][images["sha256"] != ""].isin(before["sha256"]).any())
    seen = {}
    for split, used in (("val", ["train"]), ("test", ["train", "val"])):
        new = images[images["image_id"].isin(splits["image_id"][splits["split"] == split])]
        # An image that the earlier run held out too is not a leak, though it may look like one of another lesion.
        held_out = find_known(new, before[before["split"] == split])
        held_out = held_out[held_out["reason"].isin([SAME_FILE, SAME_IMAGE_ID])]
        new = new[~new["image_id"].isin(held_out["image_id"])]
        found = find_known(new, before[before["split"].isin(used)], same_names=same_names)
        seen[split] = found["image_id"].tolist()
    if seen["val"] or seen["test"]:
        counts = " and ".join(f"{len(ids)} images of {split}" for split, ids in seen.items() if ids)
        example = ", ".join(sorted({*seen["val"], *seen["test"]})[:3])
        raise LeakageError(
            f"--init_from: the weights of {start.origin.name} were trained or chosen on the lesions of {counts}, such as "
            f"{example}, so scores would be too high. Use the splits of that run, --splits {start.splits}, and its "
            "--test_source, if it had one."
        )
    earlier = start.run.get("origin")
    if isinstance(earlier, dict) and earlier.get("kind") == "weights":
        # The images of the run before are known only where its check passed, on the same splits.
        passed = str(earlier.get("overlap")).startswith(NOT_SEEN)
        if not (passed and start.run.get("splits_sha256") == splits_hash(splits)):
            return f"could not be checked, since the weights of {start.origin.name} were trained from others in turn"
    return NOT_SEEN
