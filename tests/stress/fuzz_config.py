"""Fuzz everything that reads a configuration for a bounded time: `python tests/stress/fuzz_config.py --seconds 60`.

The files are those of a model folder (`config.json`, the header of `model.safetensors`, `onnx/model.onnx`, `metrics.json`), a
file of `--config`, `train_config.json` of a run that is resumed, and `splits.csv`. hypothesis changes valid ones in their
structure, their bytes are changed at random and, where atheris is installed, guided by coverage. Each must be read or
refused with the reader's own error. The work is done in a child process, as in fuzz_images.py; whatever raises another
error, crashes, takes longer than 20 s or more than 2 GB is kept in `fuzz_findings/`, and the exit status is 1.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

# isort: split
from stress.fuzz_images import MAX_BYTES, MAX_SECONDS_PER_INPUT, mutated, take_turns

# What is read is imported where it is used: atheris has to see it being imported.

# A placeholder for brackets that no encoder could write without running out of stack.
DEEP = "@@deep@@"
HOSTILE = [
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 10**30, 10**400, 1e308, -1e-308),
    *(float("nan"), float("inf"), float("-inf"), "nan", "1e999", "", "\0", "\n", "\ud800", "\u202e", "é" * 300),
    *("<script>alert(1)</script>", "../../../etc/passwd", "hf-hub:me/evil", "--push_to_hub", "=1+1", "a" * 10**5, DEEP),
    *([], {}, [[]], [None], [0] * 1000, ["x"] * 1000, {"__class__": 1}, {"auto_map": {"AutoModel": "evil.Evil"}}),
]  # fmt: skip
YAML_BOMBS = [
    "a: &a [x, x]\nb: &b [*a, *a]\ndiagnoses: *b\n",
    "a: &a {k: 1}\n" + "".join(f"{y}: &{y}\n  <<: [{', '.join(['*' + x] * 9)}]\n" for x, y in pairwise("abcdefghi")),
    "epochs: !!python/object/apply:os.system ['true']\n",
    "epochs: !!timestamp x\n", "epochs: !!int ''\n", "epochs: !!bool x\n", "seed: !!binary x\n", "? [a, b]\n: c\n",
    "epochs: 2001-99-99\n", "--- 1\n--- 2\n", "dataset: " + "[" * 500, "{" * 500, "- " * 40_000, "seed: 0x" + "f" * 9000,
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        seed: A valid one.
        read: Reads such a file; returns False if it was refused as promised, and raises on everything else.
        encode: From the structure that hypothesis changes to bytes.
        structure: Of the seed; None where there is none.
        extra: More files to start from.
    """

    seed: bytes
    read: Callable[[bytes], bool]
    encode: Callable[[Any], bytes]
    structure: Any
    extra: tuple[bytes, ...] = ()


def make_readers(model_folder: Path, scratch: Path) -> dict[str, Reader]:
    """Return the readers by name, working on copies in `scratch`; that of metrics.json only if the folder has one."""
    import pandas as pd
    from PIL import Image

    from modeling import onnx_trial
    from modeling.classifier import LesionClassifier
    from modeling.data.splits import read_splits
    from modeling.data.splits_file import write_splits
    from modeling.files import ModelFolderError, file_sha256
    from modeling.model_folder import ONNX_NAME
    from modeling.publish.card import render_card
    from modeling.publish.hub import PublishError
    from modeling.training.options import parse_options
    from modeling.training.run_folder import check_same_run

    picture = Image.new("RGB", (40, 30), (160, 90, 60))
    folder = shutil.copytree(model_folder, scratch / "model")

    def read_config(data: bytes) -> bool:
        (folder / "config.json").write_bytes(data)
        try:
            classifier = LesionClassifier.from_pretrained(folder, device="cpu")
        except ModelFolderError as error:
            return is_refusal(error)
        # What opens must answer, and the answer must be text that can be sent.
        answer = classifier.predict(picture).to_dict()
        json.dumps([answer, classifier.notice], allow_nan=False, ensure_ascii=False).encode()
        assert abs(sum(answer["probabilities"].values()) - 1) < 1e-5  # each is rounded to six digits, and never to 0
        return True

    heavy = shutil.copytree(model_folder, scratch / "heavy")
    weights = (heavy / "model.safetensors").read_bytes()
    header_end = 8 + int.from_bytes(weights[:8], "little")

    def read_weights(data: bytes) -> bool:
        (heavy / "model.safetensors").write_bytes(data + weights[header_end:])
        content = json.loads((heavy / "config.json").read_text())
        content["lesion"]["weights_sha256"] = file_sha256(heavy / "model.safetensors")
        content["lesion"].pop("config_sha256", None)  # else every change would be refused for its hash alone
        (heavy / "config.json").write_text(json.dumps(content))
        try:
            LesionClassifier.from_pretrained(heavy, device="cpu", engine="torch")
        except ModelFolderError as error:
            return is_refusal(error)
        return True

    def header(tree: Any) -> bytes:
        text = as_json(tree)
        return len(text).to_bytes(8, "little") + text

    network = shutil.copytree(model_folder, scratch / "network")
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")  # which networks have run
    onnx_trial.MAX_CPU_S = 5

    def read_network(data: bytes) -> bool:
        (network / ONNX_NAME).write_bytes(data)
        content = json.loads((network / "config.json").read_text())
        content["lesion"] |= {"onnx_sha256": file_sha256(network / ONNX_NAME), "config_sha256": None}
        (network / "config.json").write_text(json.dumps(content))
        try:
            LesionClassifier.from_pretrained(network, device="cpu").explain(picture)
        except ModelFolderError as error:
            return is_refusal(error)
        return True

    scored = shutil.copytree(model_folder, scratch / "scored")

    def read_metrics(data: bytes) -> bool:
        (scored / "metrics.json").write_bytes(data)
        try:
            "".join(render_card(scored).values()).encode()
        except PublishError as error:
            return is_refusal(error)
        return True

    yaml_file = scratch / "options.yaml"
    options = (
        "dataset: demo\nepochs: 3\nlearning_rate: 1.0e-3\ndiagnoses: [MEL, NV]\npush_to_hub: false\nhub_model_id:\n"
    )

    def read_options(data: bytes) -> bool:
        yaml_file.write_bytes(data)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parse_options(["--config", str(yaml_file)])
        except ValueError as error:
            return is_refusal(error)
        except SystemExit as stopped:  # of argparse, which has printed a sentence
            if stopped.code != 2:
                raise
            return False
        return True

    run_file = scratch / "train_config.json"
    run = {"run_id": "x", "options": {"dataset": "demo", "epochs": 3}, "codes": ["MEL", "NV"], "num_processes": 1}

    def read_run(data: bytes) -> bool:
        run_file.write_bytes(data)
        try:
            check_same_run(run_file, run)
        except ValueError as error:
            return is_refusal(error)
        return True

    rows = [
        {"image_id": f"i{n}", "lesion_id": f"l{n}", "label": "MEL", "source": "HAM", "split": "test"} for n in range(9)
    ]
    table = pd.DataFrame(rows)
    splits_file = scratch / "splits.csv"
    write_splits(table, splits_file)
    splits = splits_file.read_bytes()

    def read_table(data: bytes) -> bool:
        splits_file.write_bytes(data)
        try:
            read_splits(splits_file, table)
        except ValueError as error:
            return is_refusal(error)
        return True

    unsealed = json.loads((model_folder / "config.json").read_text())
    unsealed["lesion"].pop("config_sha256", None)  # as above
    config = as_json(unsealed)
    readers = {
        "config": Reader(config, read_config, as_json, json.loads(config)),
        "weights": Reader(weights[:header_end], read_weights, header, json.loads(weights[8:header_end])),
        "network": Reader((model_folder / ONNX_NAME).read_bytes(), read_network, as_json, None),
        "options": Reader(
            options.encode(),
            read_options,
            as_json,  # which is YAML too
            {"dataset": "demo", "epochs": 3, "learning_rate": 1e-3, "diagnoses": ["MEL", "NV"], "push_to_hub": False},
            tuple(bomb.encode() for bomb in YAML_BOMBS),
        ),
        "run": Reader(as_json(run), read_run, as_json, run),
        "splits": Reader(splits, read_table, as_csv, [line.split(",") for line in splits.decode().splitlines()]),
    }
    if (scored / "metrics.json").exists():
        metrics = (scored / "metrics.json").read_bytes()
        readers["metrics"] = Reader(metrics, read_metrics, as_json, json.loads(metrics))
    return readers


def is_refusal(error: Exception) -> bool:
    """Make sure that a refusal is a sentence of bounded length that can be printed; return False."""
    sentence = str(error)
    sentence.encode()
    assert 10 < len(sentence) < 5000, sentence[:200]
    return False


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 10**5 + "]" * 10**5).encode()


def as_csv(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    lines = [",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def places_of(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of everything in a tree of dicts and lists."""
    for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places_of(value)


def changed(tree: Any) -> Any:
    """Return a hypothesis strategy of the tree with one to three changes at any depth."""
    from hypothesis import strategies as st

    anything = st.recursive(
        st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=6,
    )
    values = st.sampled_from(HOSTILE) | anything

    @st.composite
    def strategy(draw: Callable[[Any], Any]) -> Any:
        if draw(st.integers(0, 30)) == 0:
            return draw(values)
        result = copy.deepcopy(tree)
        for _ in range(draw(st.integers(1, 3))):
            places = list(places_of(result))
            if not places:
                break
            container, key = places[draw(st.integers(0, len(places) - 1))]
            match draw(st.integers(0, 5)):
                case 0:
                    del container[key]
                case 1 | 2:
                    container[key] = copy.deepcopy(draw(values))
                case 3 if isinstance(container, dict):  # a key that is not known
                    container[draw(st.text(max_size=8) | st.sampled_from(["auto_map", "url", "file", "", DEEP]))] = 1
                case 3:  # again and again would fill this process's own memory
                    container *= draw(st.sampled_from([2, 1000])) if len(container) <= 1000 else 1
                case 4:  # what is elsewhere
                    other, place = places[draw(st.integers(0, len(places) - 1))]
                    container[key] = copy.deepcopy(other[place]) if holds(other, place) else None
                case 5 if isinstance(container, dict):
                    container[draw(st.text(max_size=8))] = container.pop(key)
                case 5:
                    container[key] = [container[key]]
        return result

    return strategy()


def holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def make_model_folder(folder: Path) -> Path:
    """Write a tiny model with everything that config.json can hold."""
    import numpy as np

    from modeling.calibration import Calibration, softmax
    from modeling.labels import REFERENCE_CODES
    from modeling.operating_points import fit_operating_points
    from support.untrained import random_rule, untrained_folder

    probs = softmax(np.random.default_rng(0).normal(size=(40, 4)))
    points = fit_operating_points(probs, np.arange(40) % 4, REFERENCE_CODES)
    lesion: dict[str, Any] = {
        "package_version": "0",
        "run_id": "x",
        "dataset": "demo",
        "synthetic": True,
        "class_priors": dict.fromkeys(REFERENCE_CODES, 0.25),
        "calibration": Calibration("temperature scaling", (0.7,) * 4, (0.0,) * 4, {"none": 1.0}),
        "data_fingerprint": "f" * 64,
        "operating_points": points,
        "abstention": random_rule(4),
    }
    return untrained_folder(folder, size_px=32, onnx=True, **lesion)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    parser.add_argument("--output", type=Path, default=Path("fuzz_findings"), help="where inputs that fail are kept")
    parser.add_argument("--work", choices=["hypothesis", "random", "atheris"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)

    from support.scored import make_scored_folder

    engines = ["hypothesis", "random", *(["atheris"] if importlib.util.find_spec("atheris") else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scored_folder(folder)
        return take_turns(engines, folder, options, script=__file__)


def work(options: argparse.Namespace) -> int:
    warnings.simplefilter("ignore")
    until = time.monotonic() + options.seconds  # loading the libraries counts: the parent takes what is late for a hang
    scratch = Path(tempfile.mkdtemp(dir=options.folder))
    if options.work == "atheris":
        import atheris

        with atheris.instrument_imports(include=["modeling", "train"]):
            readers = make_readers(options.folder / "model", scratch)
    else:
        readers = make_readers(options.folder / "model", scratch)

    count_file = options.folder / "count"
    current = (options.folder / "current").open("r+b", buffering=0)
    count = 0

    def try_one(data: bytes) -> None:
        """Read one input: the name of a reader, a line feed, the file."""
        nonlocal count
        name, _, content = data.partition(b"\n")
        reader = readers.get(name.decode("ascii", "replace"))
        if reader is None:
            return
        count += 1
        current.seek(0)
        current.truncate()
        current.write(data)
        reader.read(content)
        if count % 20 == 0:
            count_file.write_text(str(count))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MAX_BYTES:
            raise MemoryError(f"this input took the process over {MAX_BYTES // 2**20} MB")

    for name, reader in readers.items():
        assert reader.read(reader.seed), f"the valid {name} is refused"
    if options.work == "atheris":
        seeds = scratch / "seeds"
        seeds.mkdir()
        for name, reader in readers.items():
            for number, content in enumerate([reader.seed, *reader.extra]):
                (seeds / f"{name}-{number}").write_bytes(name.encode() + b"\n" + content)
        limits = [f"-max_total_time={max(1, int(until - time.monotonic()))}", f"-timeout={MAX_SECONDS_PER_INPUT}"]
        search = [f"-seed={options.seed + 1}", "-max_len=100000", f"-rss_limit_mb={MAX_BYTES // 2**20}"]
        atheris.Setup([sys.argv[0], *limits, *search, f"-artifact_prefix={options.folder}/", str(seeds)], try_one)
        atheris.Fuzz()  # ends the process
        return 0

    rng = random.Random(options.seed)
    # A card and a network take a hundred times as long as a splits.csv.
    names = [name for name in sorted(readers) for _ in range(1 if name in ("metrics", "network") else 6)]
    if options.work == "hypothesis":
        names.remove("network")
    while time.monotonic() < until:
        name = rng.choice(names)
        reader = readers[name]
        if options.work == "hypothesis":
            for tree in examples(reader.structure, 20, rng.randrange(2**32)):
                if time.monotonic() < until:
                    try_one(name.encode() + b"\n" + reader.encode(tree))
        else:
            try_one(name.encode() + b"\n" + mutated(rng, [reader.seed, *reader.extra]))
    count_file.write_text(str(count))
    return 0


def examples(structure: Any, number: int, seed: int) -> list[Any]:
    """Return changed structures, drawn by hypothesis."""
    import hypothesis

    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(changed(structure))
    def draw(tree: Any) -> None:
        drawn.append(tree)

    draw()
    return drawn


if __name__ == "__main__":
    sys.exit(main())
