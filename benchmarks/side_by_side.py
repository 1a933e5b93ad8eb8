"""Shared by the benchmarks: interleaved rounds, medians with their spread, ratios within a round, bars, a JSON file.

Ratios are taken within each round, in a random order, so that other work on the machine weighs on both sides alike.

Waiting threads must sleep. By default OpenMP's threads spin as long as they are no more than the cores; where other work
holds a core, one forward pass of 30 ms then takes up to 1,700 ms. `predict` is not affected, since its decoding threads make
OpenMP stop spinning: a limit measured without this setting came out at half of `predict`'s throughput. So benchmarks set
OMP_WAIT_POLICY before torch is loaded, and `in_turn` refuses to start without it.
"""

import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from modeling.labels import CODES
from modeling.model_folder import ONNX_NAME
from modeling.network import build_model, save_model_folder
from modeling.training.onnx_export import export_onnx

RESULTS = Path(__file__).parent / "results"
PAGE = RESULTS.parents[1] / "docs" / "results.md"
Row = tuple[str, str, str, bool | None]  # what, the figure, the bar, whether it is met; None without a bar


def make_model(folder: Path, backbone: str, size_px: int) -> Path:
    """Write a model folder of random weights and all diagnoses, with its ONNX file."""
    torch.manual_seed(0)
    model = build_model(backbone, num_classes=len(CODES), size_px=size_px, pretrained=False)
    export_onnx(model.eval(), folder / ONNX_NAME)
    save_model_folder(model, folder, codes=CODES, lesion={})
    return folder


def launched(processes: int) -> list[str]:
    """Return the start of a command that runs on the CPU in as many processes."""
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *several]


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Call every function once a round, after a warm-up round if asked for, and return their values."""
    if os.environ.get("OMP_WAIT_POLICY") != "PASSIVE":
        raise RuntimeError("set OMP_WAIT_POLICY=PASSIVE before torch is imported; see this file's first lines.")
    values: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            value = runs[name]()
            if number:
                values[name].append(value)
        print(f"round {number} of {rounds}{'' if number else ' (warm-up, not counted)'}", flush=True)
    return values


def ratio(values: Mapping[str, list[float]], name: str, other: str) -> float:
    """Return the median over the rounds of name / other."""
    return statistics.median(a / b for a, b in zip(values[name], values[other], strict=True))


def show(values: Mapping[str, list[float]], unit: str) -> None:
    """Print medians and spread."""
    width = max(map(len, values))
    print(f"\n{unit:{width}} {'median':>10} {'min':>10} {'max':>10}")
    for name, each in values.items():
        print(f"{name:{width}} {statistics.median(each):10.2f} {min(each):10.2f} {max(each):10.2f}")


def table(rows: Iterable[Sequence[object]]) -> str:
    """Return rows, also those read from JSON, as a Markdown table."""
    lines = ["| | figure | bar | |", "|---|---|---|---|"]
    for what, figure, bar, met in rows:
        lines.append(f"| {what} | {figure} | {bar} | {'' if met is None else 'met' if met else '**missed**'} |")
    return "\n".join(lines)


def show_on_page(name: str, rows: Sequence[Row]) -> None:
    """Replace the table below the line of docs/results.md that names the file; without such a line, print it."""
    mark = f"<!-- benchmarks/results/{name}.json -->\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if mark not in page:
        print(table(rows))
        return
    before, after = page.split(mark)
    rest = after.split("\n\n", 1)[1]
    PAGE.write_text(f"{before}{mark}{table(rows)}\n\n{rest}", encoding="utf-8")


def write(
    name: str, content: Mapping[str, object], bars: Mapping[str, bool | None], *, rows: Sequence[Row] = ()
) -> None:
    """Print which bars are met (None: not for this machine); write all to results/NAME.json with date and machine.

    Rows are the table of it in docs/results.md.
    """
    print()
    for bar, met in bars.items():
        print(f"{'not measured on this machine' if met is None else 'met' if met else 'MISSED'}: {bar}")
    machine = {
        "cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"), "load_average_at_the_end": os.getloadavg(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    whole = {"date": date.today().isoformat(), "machine": machine, **content, "bars": bars, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if rows:
        show_on_page(name, rows)
