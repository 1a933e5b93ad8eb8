"""Find, download and check a model folder.

It holds `config.json` (timm's Hub layout plus one root key, `lesion`) and the network twice: `model.safetensors` (timm's own
key names; timm, transformers' TimmWrapper and the torch engine read it) and `onnx/model.onnx` for ONNX Runtime. Nothing in it
is executable.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling.files import (
    CONFIG_NAME,
    MAX_TEXT,
    PICKLE_SUFFIXES,
    ModelFolderError,
    file_sha256,
    is_name,
    read_json,
    shortened,
)

CONFIG_SCHEMA = 2  # 1 said wanted_sensitivity
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_WEIGHTS_BYTES = 4 * 1024**3
MAX_OPERATING_POINTS = 100
ONNX_NAME = "onnx/model.onnx"  # where the Hub's tools look for it
# What `save_model_folder` writes. All else would be for somebody else to obey: model_args, auto_map, url, file, …
CONFIG_KEYS = {
    "architecture",
    "num_classes",
    "num_features",
    "label_names",
    "label_descriptions",
    "pretrained_cfg",
    "lesion",
}
PREPROCESSING_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
NETWORK_KEYS = ("fixed_input_size", "pool_size", "first_conv", "classifier")
# Entries of `lesion` that are shown, compared or computed with; each may be missing or null.
LESION_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("package_version", "run_id", "dataset", "protocol", "base_model", "license"), str),
    **dict.fromkeys(("data_fingerprint", "splits_sha256", "weights_sha256", "onnx_sha256", "config_sha256"), str),
    "synthetic": bool,
    "calibration": dict,  # folded into the weights
    "decision": dict,
    "operating_points": list,
    "abstention": dict,
    "golden": dict,
}


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model, and where it came from.

    Attributes:
        path: The folder on this machine.
        model_id: Hub repository id, or the name of the run for a local folder.
        revision: Full commit hash on the Hub; None for a local folder.
        from_cache: True if the Hub did not answer and an earlier download is used.
    """

    path: Path
    model_id: str
    revision: str | None
    from_cache: bool = False


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration's values, however its file is written; its own entry is left out."""
    lesion = {key: value for key, value in config["lesion"].items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps({**config, "lesion": lesion}, sort_keys=True).encode()).hexdigest()


def resolve_model_folder(repo_or_folder: str | Path, revision: str | None = None) -> ModelFolder:
    """Find a model folder on this machine, or download the config.json of a Hub repository; `fetch` gets the network.

    Raises:
        ModelFolderError: If it is neither a folder nor a reachable repository.
    """
    path = Path(repo_or_folder)
    if path.is_dir():
        if revision is not None:
            raise ModelFolderError(f"{path} is a folder and has no revisions; leave `revision` out.")
        # runs/demo/model is better known as "demo" than as "model".
        name = path.resolve().parent.name if path.resolve().name == "model" else path.resolve().name
        return ModelFolder(path, model_id=name, revision=None)
    repo_id = str(repo_or_folder)
    # Imported late: a local folder must open without the Hub client's start-up cost.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().model_info(repo_id, revision=revision, timeout=15)
        from_cache = False
    except HFValidationError:
        raise ModelFolderError(
            f"{repo_id!r} is neither a folder here nor a Hub repository id such as 'me/skin-lesion-b0'."
        ) from None
    except GatedRepoError:
        raise ModelFolderError(
            f"{repo_id} is gated: accept its terms on the Hub and log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelFolderError(
            f"the Hub has no model {repo_id!r} that you may read, and there is no such folder here; "
            "check the name, and log in with `hf auth login` if it is private."
        ) from None
    except RevisionNotFoundError:
        raise ModelFolderError(
            f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit hash."
        ) from None
    except Exception as error:
        # Whatever keeps the Hub from answering (no network, a fault on its side, offline mode), an earlier download serves.
        from_cache, reason = True, f"{type(error).__name__}: {error}"
    try:
        # By the name asked for, not by its commit: the cache then knows the name too when the Hub is down.
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=[CONFIG_NAME], local_files_only=from_cache
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        detail = reason if from_cache else f"{type(error).__name__}: {error}"
        raise ModelFolderError(
            f"{repo_id} could not be downloaded and no earlier download of it is on this machine ({detail}); "
            "check the network and try again, or give a model folder."
        ) from error
    return ModelFolder(Path(folder), model_id=repo_id, revision=Path(folder).name, from_cache=from_cache)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `config.json` of a model folder.

    Raises:
        ModelFolderError: If the folder was not written by this package, or the file is damaged.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {CONFIG_NAME}; give the folder `model` of a run or a Hub repository.")
    config = read_json(path)
    problem = _config_problem(config)
    if problem:
        raise ModelFolderError(f"{path}: {problem}")
    return config


def _config_problem(config: dict[str, Any]) -> str | None:
    """Return what is wrong with a configuration, in words, or None."""
    lesion = config.get("lesion")
    if not isinstance(lesion, dict):
        return "no entry 'lesion', so this package did not write it; load such a model with timm or transformers."
    if lesion.get("schema") != CONFIG_SCHEMA:
        return (
            f"its schema is {shortened(lesion.get('schema'))} and this version reads {CONFIG_SCHEMA}; "
            "update skin-lesion-classifier or take an older revision of the model."
        )
    for key, wanted in LESION_TYPES.items():
        value = lesion.get(key)
        if value is not None and (not isinstance(value, wanted) or (isinstance(value, str) and not is_name(value))):
            return f"{key} of the entry 'lesion' is {shortened(value)}, which cannot be."
    if len(lesion.get("operating_points") or []) > MAX_OPERATING_POINTS:
        return f"it has more than {MAX_OPERATING_POINTS} operating points."
    pretrained_cfg = config.get("pretrained_cfg")
    if not isinstance(pretrained_cfg, dict):
        return "no entry 'pretrained_cfg', which holds the preprocessing."
    foreign = [key for key in config if key not in CONFIG_KEYS]
    foreign += [key for key in pretrained_cfg if key not in (*PREPROCESSING_KEYS, *NETWORK_KEYS, "custom_load")]
    foreign += ["custom_load"] if pretrained_cfg.get("custom_load") else []
    if foreign:
        return (
            f"it has {', '.join(map(shortened, foreign[:5]))}, which this package never writes; refused, since other "
            "programs take from such entries what to build, download or run."
        )
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9_]+", architecture):
        return f"architecture {shortened(architecture)} is no timm network's name."
    names = config.get("label_names")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and is_name(name) for name in names)
        or len(set(names)) != len(names)
        or not 2 <= len(names) <= MAX_CLASSES
    ):
        return f"label_names must be 2 to {MAX_CLASSES} different names, each of 1 to {MAX_TEXT} printable characters."
    if config.get("num_classes") != len(names):
        return f"num_classes is {shortened(config.get('num_classes'))}, but there are {len(names)} label_names."
    descriptions = config.get("label_descriptions")
    if not isinstance(descriptions, dict) or not all(
        isinstance(text, str) and is_name(text) for text in descriptions.values()
    ):
        return "label_descriptions must give a name for each label."
    size = pretrained_cfg.get("input_size")
    if not (
        isinstance(size, list)
        and len(size) == 3
        and all(type(side) is int for side in size)
        and size[0] == 3
        and size[1] == size[2]
        and 16 <= size[1] <= MAX_SIZE_PX
    ):
        return f"input_size must be [3, S, S] with S from 16 to {MAX_SIZE_PX}, got {shortened(size)}."
    for key in ("mean", "std"):
        value = pretrained_cfg.get(key)
        if not (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(v, int | float) and 0 <= v < 10 for v in value)
        ):
            return f"{key} must be three numbers, got {shortened(value)}."
    if any(value < 0.001 for value in pretrained_cfg["std"]):
        return "std must not be zero or close to it."
    if pretrained_cfg.get("crop_mode") != "squash" or pretrained_cfg.get("crop_pct") != 1.0:
        return "crop_mode must be 'squash' and crop_pct 1.0, as this package trains."
    if pretrained_cfg.get("interpolation") not in ("bicubic", "bilinear"):
        return f"interpolation {shortened(pretrained_cfg.get('interpolation'))} is not bicubic or bilinear."
    return None


def fetch(source: ModelFolder, name: str) -> Path:
    """Return the file that holds the network, `model.safetensors` or `onnx/model.onnx`; downloaded if it is on the Hub.

    Raises:
        ModelFolderError: If it cannot be had, or is too large.
    """
    path = source.path / name
    if source.revision is not None and not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(
                hf_hub_download(source.model_id, name, revision=source.revision, local_files_only=source.from_cache)
            )
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise ModelFolderError(
                f"{name} of {source.model_id} could not be downloaded ({type(error).__name__}: {str(error)[:300]}); "
                "check the network and try again, or give a model folder."
            ) from error
    if not path.is_file():
        pickles = sorted(file.name for file in source.path.iterdir() if file.suffix in PICKLE_SUFFIXES)
        hint = f"; {pickles[0]} is a pickle, which can run code when it is opened, and is refused" if pickles else ""
        raise ModelFolderError(f"{source.path} has no {name}{hint}.")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise ModelFolderError(f"{path} is larger than {MAX_WEIGHTS_BYTES // 1024**3} GiB; refused.")
    return path


def checked_file(path: Path, expected_sha256: str | None) -> Path:
    """Return a file of the network if it is the one that config.json describes.

    Raises:
        ModelFolderError: If it is another one.
    """
    if file_sha256(path) != expected_sha256:
        raise ModelFolderError(
            f"{path} is not the file that {CONFIG_NAME} describes (its SHA-256 differs); download the folder again, "
            "or save it anew if you changed the weights."
        )
    return path


def file_beside(source: ModelFolder, name: str) -> Path | None:
    """Return a file beside the model's weights, from its folder or from the same revision on the Hub; None without one."""
    path = source.path / name
    if source.revision is not None and not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(source.model_id, name, revision=source.revision))
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None
