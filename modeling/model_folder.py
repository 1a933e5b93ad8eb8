"""Write a network as a model folder, and find, check and open such a folder again.

A model folder holds `model.safetensors` (timm's own key names) and `config.json` (timm's Hub layout plus one root key,
`lesion`). timm, transformers' TimmWrapper and this package read it alike; nothing in it is executable.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from modeling.files import (
    CONFIG_NAME,
    MAX_TEXT,
    PICKLE_SUFFIXES,
    WEIGHTS_NAME,
    ModelFolderError,
    file_sha256,
    is_name,
    read_json,
    shortened,
    write_json,
)
from modeling.labels import diagnosis_of
from modeling.network import TimmModel

CONFIG_SCHEMA = 2  # 1 said wanted_sensitivity
MAX_CLASSES = 1000
MAX_SIZE_PX = 1024
MAX_WEIGHTS_BYTES = 4 * 1024**3
MAX_OPERATING_POINTS = 100
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}
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
    **dict.fromkeys(("data_fingerprint", "splits_sha256", "weights_sha256", "config_sha256"), str),
    "synthetic": bool,
    "temperature": (int, float),  # of what was folded into the weights
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


def save_model_folder(model: TimmModel, folder: Path, *, codes: Sequence[str], lesion: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json`, as timm, transformers and `load_model_folder` read them.

    Args:
        model: Network of `build_model`, calibration already folded into its classifier.
        folder: Created if missing; files of the same name are replaced.
        codes: Diagnosis codes in the order of the classifier's outputs.
        lesion: Operating points, abstention rule and provenance; `schema` and the two hashes are added here.
    """
    save_weights(model, folder)
    save_config(model, folder, codes=codes, lesion=lesion)


def save_weights(model: TimmModel, folder: Path) -> None:
    """Write `model.safetensors` into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes it for its owner alone; a server may be another user


def save_config(model: TimmModel, folder: Path, *, codes: Sequence[str], lesion: Mapping[str, Any]) -> None:
    """Write `config.json` beside the weights; arguments as of `save_model_folder`."""
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        # `num_classes` stands here only: inside model_args transformers 5 raises a TypeError for it.
        "num_classes": len(codes),
        "num_features": model.num_features,
        "label_names": list(codes),
        "label_descriptions": {code: diagnosis_of(code).name for code in codes},
        "pretrained_cfg": {
            "custom_load": False,
            **{
                key: model.pretrained_cfg[key]
                for key in (*PREPROCESSING_KEYS, *NETWORK_KEYS)
                if model.pretrained_cfg.get(key) is not None
            },
        },
        "lesion": {"schema": CONFIG_SCHEMA, **lesion, "weights_sha256": file_sha256(folder / WEIGHTS_NAME)},
    }
    config["lesion"]["config_sha256"] = config_sha256(config)
    write_json(folder / CONFIG_NAME, config)


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration's values, however its file is written; its own entry is left out."""
    lesion = {key: value for key, value in config["lesion"].items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps({**config, "lesion": lesion}, sort_keys=True).encode()).hexdigest()


def resolve_model_folder(repo_or_folder: str | Path, revision: str | None = None) -> ModelFolder:
    """Find a model folder on this machine, or download the two files it is loaded from out of a Hub repository.

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
            repo_id, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME], local_files_only=from_cache
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
    if lesion.get("temperature") is not None and not 0 < lesion["temperature"] < 1e6:
        return f"temperature must be above 0, got {shortened(lesion['temperature'])}."
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
    if (
        not isinstance(architecture, str)
        or not re.fullmatch(r"[a-z0-9_]+", architecture)
        or not timm.is_model(architecture)
    ):
        return f"architecture {shortened(architecture)} is no timm network of this installation."
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


def load_model_folder(folder: Path) -> tuple[TimmModel, dict[str, Any]]:
    """Open a model folder: its network in evaluation mode with frozen weights, and its configuration.

    Raises:
        ModelFolderError: If a file is missing, damaged, does not fit the network, or is not the one that was saved.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
        hint = f"; {pickles[0]} is a pickle, which can run code when it is opened, and is refused" if pickles else ""
        raise ModelFolderError(f"{folder} has no {WEIGHTS_NAME}{hint}.")
    if weights.stat().st_size > MAX_WEIGHTS_BYTES:
        raise ModelFolderError(f"{weights} is larger than {MAX_WEIGHTS_BYTES // 1024**3} GiB; refused.")
    architecture = {"model_name": config["architecture"], "num_classes": config["num_classes"], "pretrained": False}
    # First without memory: what is allocated after the comparison is no larger than the file that is there.
    with torch.device("meta"):
        _check_weights_fit(weights, timm.create_model(**architecture))
    expected = config["lesion"].get("weights_sha256")
    if expected != file_sha256(weights):
        raise ModelFolderError(
            f"{weights} is not the file that {CONFIG_NAME} describes (weights_sha256 differs); download the folder again, "
            "or save it anew if you changed the weights."
        )
    model: TimmModel = timm.create_model(**architecture)
    model.load_state_dict(load_file(weights))
    preprocessing = {key: config["pretrained_cfg"][key] for key in PREPROCESSING_KEYS}
    model.pretrained_cfg = {**model.pretrained_cfg, **preprocessing, "architecture": config["architecture"]}
    model.requires_grad_(False)
    return model.eval(), config


def _check_weights_fit(weights: Path, model: TimmModel) -> None:
    """Compare the file's header with the network, before any tensor is read."""
    wanted = {key: (list(value.shape), value.dtype) for key, value in model.state_dict().items()}
    try:
        with safe_open(weights, framework="pt") as file:
            entries = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            found = {key: (entry.get_shape(), DTYPES.get(entry.get_dtype())) for key, entry in entries.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFolderError(
            f"{weights} is no whole safetensors file ({str(error)[:300]}); download it again."
        ) from error
    missing = sorted(wanted.keys() - found.keys())
    extra = [shortened(key) for key in sorted(found.keys() - wanted.keys())[:3]]
    if missing or extra:
        raise ModelFolderError(
            f"{weights} does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(found.keys() - wanted.keys())} unknown [{', '.join(extra)}]."
        )
    different = [key for key in wanted if found[key] != wanted[key]]
    if different:
        first = different[0]
        raise ModelFolderError(
            f"{weights}: {len(different)} tensors have another shape or type, first {first}: {shortened(found[first])} "
            f"instead of {wanted[first]}."
        )


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
