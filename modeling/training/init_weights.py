"""What a run starts from: weights found, named, loaded, and compared with what will be tested on.

`--init_from` takes a model folder, a .safetensors file, or a Hub repository as `name@revision`: of this package or in timm's
own layout. An earlier model may have seen the images that a new run tests on, so its splits are compared with the new ones.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from modeling.data.duplicates import DUPLICATE_PREFIX, HASHES_NAME, find_known, read_hashes
from modeling.data.splits import LeakageError, load_splits
from modeling.files import ModelFolderError, file_sha256, is_name, read_json
from modeling.model_folder import (
    CONFIG_NAME,
    SPLITS_NAME,
    UNKNOWN_ORIGIN,
    WEIGHTS_NAME,
    ModelFolder,
    fetch,
    file_beside,
    resolve_model_folder,
)
from modeling.network import TimmModel


@dataclass(frozen=True)
class Origin:
    """Where the weights came from that training started with, as metrics.json and the card say it."""

    kind: str  # "scratch" (random weights), "pretrained" (timm's weights from the Hub) or "weights" (`--init_from`)
    name: str | None = None  # of the repository, folder or file; None from scratch
    sha256: str | None = None  # of its weights file; None from scratch, and where timm downloaded it
    base_model: str | None = None  # Hub id of the model that they are, or were trained from; UNKNOWN_ORIGIN if not said
    overlap: str | None = None  # how it was made sure that they have not seen val and test, or why it could not be


@dataclass(frozen=True)
class Start:
    """Weights to start from, with the splits and the hashes of the images that they were trained on, where these are known."""

    origin: Origin
    weights: Path | None = None
    splits: Path | None = None
    hashes: Path | None = None


def find_start(init_from: str | None, *, backbone: str, pretrained: bool) -> Start:
    """Find what `--init_from` names; without it, ImageNet weights or none.

    Raises:
        ModelFolderError: If it is neither a .safetensors file, nor a folder or repository that holds such weights.
    """
    if init_from is None:
        return Start(Origin("pretrained", backbone) if pretrained else Origin("scratch"))
    path = Path(init_from)
    if path.is_file():
        # A file called model.safetensors is better known by its folder.
        name = path.resolve().parent.name if path.name == WEIGHTS_NAME else path.name
        source, weights = ModelFolder(path.parent, model_id=name, revision=None), path
    else:
        repo_id, _, revision = (init_from, "", "") if path.is_dir() else init_from.partition("@")
        try:
            source = resolve_model_folder(repo_id, revision or None)
            weights = fetch(source, WEIGHTS_NAME)
        except ModelFolderError as error:
            raise ModelFolderError(
                f"--init_from: {error} It takes a model folder, a .safetensors file or a Hub repository, REPO or REPO@REVISION."
            ) from error
    # Repositories of others have neither, and a machine without a network could not find that out.
    config_path = source.path / CONFIG_NAME
    others = source.revision is not None and not (config_path.is_file() and "lesion" in read_json(config_path))
    splits, hashes = (None if others else file_beside(source, name) for name in (SPLITS_NAME, HASHES_NAME))
    return Start(_origin(source, weights), weights, splits, hashes)


def _origin(source: ModelFolder, weights: Path) -> Origin:
    """Describe weights by their repository or by the configuration beside them, of this package or of timm."""
    if source.revision is not None:
        return Origin("weights", f"{source.model_id}@{source.revision}", file_sha256(weights), source.model_id)
    base_model: Any = None
    config_path = file_beside(source, CONFIG_NAME)
    if config_path is not None:
        config = read_json(config_path)
        lesion, preprocessing = config.get("lesion"), config.get("pretrained_cfg")
        if isinstance(lesion, dict):
            base_model = lesion.get("base_model")
        elif isinstance(preprocessing, dict) and preprocessing.get("tag"):
            base_model = f"timm/{config.get('architecture')}.{preprocessing['tag']}"
    known = isinstance(base_model, str) and is_name(base_model)
    return Origin("weights", source.model_id, file_sha256(weights), base_model if known else UNKNOWN_ORIGIN)


def load_start(model: TimmModel, weights: Path) -> None:
    """Load every tensor whose shape fits; only the classifier may be left out.

    Raises:
        ModelFolderError: If the file is damaged or of another network; names what does not fit.
    """
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(
            f"--init_from: {weights} is no .safetensors file, or it is damaged ({error})."
        ) from error
    expected = model.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in expected and expected[key].shape == value.shape}
    classifier = f"{model.pretrained_cfg['classifier']}."
    missing = [key for key in expected if key not in tensors and not key.startswith(classifier)]
    reshaped = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and key not in fitting and not key.startswith(classifier)
    ]
    unknown = [key for key in tensors if key not in expected]
    wrong = [
        f"{len(keys)} {what}, such as {', '.join(keys[:3])}"
        for keys, what in ((missing, "tensors missing"), (reshaped, "of another shape"), (unknown, "unknown"))
        if keys
    ]
    if wrong:
        raise ModelFolderError(
            f"--init_from: the weights in {weights} are of another network than --backbone "
            f"{model.pretrained_cfg['architecture']}: {'; '.join(wrong)}. Name the --backbone that they are of."
        )
    model.load_state_dict(fitting, strict=False)


def check_not_seen(start: Start, splits: pd.DataFrame, images: pd.DataFrame) -> Origin:
    """Compare what earlier weights were trained and chosen on with the val and test of a new run.

    Returns:
        Their origin, with what was compared.

    Raises:
        LeakageError: If the weights have seen a lesion of val or test; names the way out.
    """
    if start.weights is None:
        return start.origin
    if start.splits is None:
        return replace(start.origin, overlap="could not be checked, since these weights come without splits.csv")
    before = load_splits(start.splits)
    # Without hashes of its own, an earlier model's images are known by those that are in this dataset too.
    hashes = images if start.hashes is None else read_hashes(start.hashes)
    before = before.merge(hashes[["image_id", "hash"]], on="image_id", how="left")
    seen = {}
    for split, rows in (("val", before["split"] == "train"), ("test", before["split"] != "test")):
        # What was held out by id stays so, though it looks like an image of another lesion: its ids are trusted there too.
        held_out = before["image_id"][before["split"] == split]
        asked = set(splits["image_id"][splits["split"] == split]) - set(held_out)
        seen[split] = _seen(images[images["image_id"].isin(asked)], before[rows])
    if seen["val"] or seen["test"]:
        counts = " and ".join(f"{len(ids)} images of {split}" for split, ids in seen.items() if ids)
        example = sorted(seen["val"] | seen["test"])[:3]
        raise LeakageError(
            f"--init_from: those weights were trained or chosen on the lesions of {counts}, such as {', '.join(example)}, so "
            f"scores would be too high. Use the splits that they were trained with: --splits {start.splits}"
        )
    return replace(
        start.origin,
        overlap=f"none, by lesion id and near-duplicates ({before['hash'].notna().sum()} of their {len(before)} images could be "
        "compared by hash)",
    )


def _seen(now: pd.DataFrame, before: pd.DataFrame) -> set[str]:
    """Return the image ids of `now` whose image, lesion or near-duplicate is in `before`."""
    lesions = before["lesion_id"].dropna()
    same_lesion = now["lesion_id"].isin(lesions[~lesions.str.startswith(DUPLICATE_PREFIX)])
    found = set(now["image_id"][same_lesion | now["image_id"].isin(before["image_id"])])
    hashed = before.dropna(subset="hash")
    return found if hashed.empty or now.empty else found | set(find_known(now, hashed)["image_id"])
