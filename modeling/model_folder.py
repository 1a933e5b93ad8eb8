"""Find, download and check a model folder.

It holds `config.json` (see `modeling.config`) and the network twice: `model.safetensors` (timm's own key names; timm,
transformers' TimmWrapper and the torch engine read it) and `onnx/model.onnx` for ONNX Runtime. Nothing in it is executable.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling.config import CONFIG_SCHEMA, Config
from modeling.files import ROOT, ModelFolderError, file_sha256, read_json, shortened
from modeling.schema import checked

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
ONNX_NAME = "onnx/model.onnx"  # where the Hub's tools look for it
# Beside them: the scores, and the options, splits and image hashes of the run.
METRICS_NAME, RUN_NAME, SPLITS_NAME, HASHES_NAME = "metrics.json", "train_config.json", "splits.csv", "image_hashes.csv"
EXAMPLES_NAME = "examples/examples.json"  # and the images that it lists
EXTERNAL_NAME = re.compile(r"external/[a-z0-9_-]+\.json")  # external validations, one metrics.json per dataset
UNKNOWN_ORIGIN = "unknown origin"  # used when initial weights carry no provenance
MAX_GIB = {WEIGHTS_NAME: 4, ONNX_NAME: 2}  # protobuf's own limit for the second


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, and its origin."""

    path: Path
    model_id: str  # Hub repository id, or the name of the run for a local folder
    revision: str | None  # full commit hash on the Hub; None for a local folder
    from_cache: bool = False  # the Hub did not answer, and an earlier download is used


def released_model() -> Path:
    """Return the model folder that a clone of the repository contains.

    Raises:
        ModelFolderError: If there is not exactly one.
    """
    folders = sorted(path.parent for path in (ROOT / "pretrained").glob(f"*/{CONFIG_NAME}"))
    if len(folders) != 1:
        raise ModelFolderError(
            f"{ROOT / 'pretrained'} holds {len(folders)} models, not one; name a model folder or a Hub repository."
        )
    return folders[0]


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the values of a config.json, without its own entry; formatting does not change it."""
    lesion = {key: value for key, value in config["lesion"].items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps({**config, "lesion": lesion}, sort_keys=True).encode()).hexdigest()


def resolve_model_folder(repo_or_folder: str | Path, revision: str | None = None) -> ModelFolder:
    """Find a model folder on this machine, or download the config.json of a Hub repository; `fetch` downloads the network.

    Raises:
        ModelFolderError: If it is neither a folder nor a reachable repository.
    """
    path = Path(repo_or_folder)
    if os.path.isdir(path):  # `Path.is_dir` raises for a name that is too long
        if revision is not None:
            raise ModelFolderError(f"{path} is a folder and has no revisions; leave `revision` out.")
        # Name local folders after the run: runs/demo/model → "demo".
        name = path.resolve().parent.name if path.resolve().name == "model" else path.resolve().name
        return ModelFolder(path, model_id=name, revision=None)
    repo_id = str(repo_or_folder)
    # Imported late: a local folder must open without the Hub client's start-up cost.
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    earlier: object = None
    try:
        earlier = try_to_load_from_cache(repo_id, CONFIG_NAME, revision=revision)
        HfApi().model_info(repo_id, revision=revision, timeout=15)
        # By the name given, not by its commit: the cache then knows the name too when the Hub is down.
        folder, from_cache = snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG_NAME]), False
    # A gated repository is a kind of one that is not found.
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelFolderError(
            f"the Hub has no model {repo_id!r:.300}{f' with a revision {revision!r}' if revision else ''} that you may read, and "
            "there is no such folder here; check the name; if it is private or gated, log in with `hf auth login`."
        ) from None
    except Exception as error:  # whatever keeps the Hub from answering, an earlier download is used
        if not isinstance(earlier, str):
            raise ModelFolderError(
                f"{repo_id} could not be downloaded and no earlier download of it is on this machine "
                f"({type(error).__name__}: {str(error)[:300]}); check the network and try again, or give a model folder."
            ) from error
        folder, from_cache = str(Path(earlier).parent), True
    return ModelFolder(Path(folder), model_id=repo_id, revision=Path(folder).name, from_cache=from_cache)


def read_config(folder: Path) -> Config:
    """Read and check `config.json` of a model folder, its fitted objects built.

    Raises:
        ModelFolderError: If the folder was not written by this package, or the file is damaged; with the first such entry.
    """
    path = file_in(folder, CONFIG_NAME)
    if path is None:
        raise ModelFolderError(f"{folder} has no {CONFIG_NAME}; give the folder `model` of a run or a Hub repository.")
    content = read_json(path)
    entry = content.get("lesion")
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if schema != CONFIG_SCHEMA:
        raise ModelFolderError(
            f"{path}: the schema of its entry 'lesion' is {shortened(schema)} and this version reads {CONFIG_SCHEMA}; update "
            "skin-lesion-classifier, or take another revision; a model of others opens with timm or transformers."
        )
    config = checked(Config, content, f"{path}: ")
    names, lesion = config["label_names"], config["lesion"]
    n, points, calibration = len(names), lesion.get("operating_points") or [], lesion.get("calibration")
    priors = lesion.get("class_priors") or dict.fromkeys(names, 1 / n)
    unknown = min({code for point in points for code in point.codes} - set(names), default=None)
    problems = {
        "label_names must be different names": len(set(names)) < n,
        f"num_classes is {config['num_classes']}, but there are {n} label_names": config["num_classes"] != n,
        f"an operating point is of {shortened(unknown)}, which is not in label_names": unknown is not None,
        "operating points must have different names": len({point.name for point in points}) < len(points),
        f"calibration must have a number for each of the {n} label_names": calibration is not None
        and not len(calibration.scale) == len(calibration.bias) == n,
        "class_priors must have a fraction for each label_name, and sum to 1": set(priors) != set(names)
        or abs(sum(priors.values()) - 1) > 1e-6,
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise ModelFolderError(f"{path}: {found[0]}.")
    if lesion.get("config_sha256") not in (None, config_sha256(content)):
        raise ModelFolderError(
            f"{path} is not as it was saved (config_sha256 differs): a label, the preprocessing, a threshold or another entry "
            "was changed; download the folder again."
        )
    return config


def fetch(source: ModelFolder, name: str) -> Path:
    """Return the file that holds the network, `model.safetensors` or `onnx/model.onnx`; downloaded if it is on the Hub.

    Raises:
        ModelFolderError: If it is missing, cannot be downloaded, or is too large.
    """
    path = file_beside(source, name)
    if path is None:
        where = source.path if source.revision is None else source.model_id
        raise ModelFolderError(f"{where} has no {name}; give a model folder or a repository that has it.")
    if path.stat().st_size > MAX_GIB[name] * 1024**3:
        raise ModelFolderError(f"{path} is larger than {MAX_GIB[name]} GiB; refused.")
    return path


def checked_file(path: Path, expected_sha256: str | None) -> Path:
    """Return a file of the network after comparing it with its hash in config.json.

    Raises:
        ModelFolderError: If they differ.
    """
    if file_sha256(path) != expected_sha256:
        raise ModelFolderError(
            f"{path} is not the file that {CONFIG_NAME} describes (its SHA-256 differs); download the folder again, "
            "or save it again if you changed the weights."
        )
    return path


def file_beside(source: ModelFolder, name: str) -> Path | None:
    """Return a file of a model, from its folder or from the same revision on the Hub; None if there is no such file.

    Raises:
        ModelFolderError: If the Hub does not say whether it has one, and no earlier download of it is on this machine.
    """
    path = file_in(source.path, name)
    if path is not None or source.revision is None:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(
            hf_hub_download(source.model_id, name, revision=source.revision, local_files_only=source.from_cache)
        )
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # whatever keeps the Hub from answering
        raise ModelFolderError(
            f"{name} of {source.model_id} could not be downloaded ({type(error).__name__}: {str(error)[:300]}); "
            "check the network and try again, or give a model folder."
        ) from error


def file_in(folder: Path, name: str) -> Path | None:
    """Return a file of a folder on this machine; None if there is no such file.

    Raises:
        ModelFolderError: If it is a link out of the folder, which could show any file of this machine to others.
    """
    path, inside = folder / name, folder.resolve()
    # The Hub's cache holds links to files in `blobs`.
    if not path.resolve().is_relative_to(inside) and not path.resolve().is_relative_to(inside.parent.parent / "blobs"):
        raise ModelFolderError(f"{path} is a link out of the model folder; put the file itself there.")
    return path if path.is_file() else None
