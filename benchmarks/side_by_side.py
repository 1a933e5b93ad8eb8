"""What the benchmarks share: rounds in turn, medians with their spread, ratios within a round, bars, a JSON file.

Ratios are taken within each round, so other work on the machine, which comes and goes, weighs on both sides alike.
"""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every function once a round, after one round to warm up, and keep what they return."""
    values: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            value = run()
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


def write(name: str, content: Mapping[str, object], bars: Mapping[str, bool]) -> None:
    """Print which bars are met, and write everything to results/NAME.json with date and machine."""
    print()
    for bar, met in bars.items():
        print(f"{'met' if met else 'MISSED'}: {bar}")
    machine = {
        "cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "load_average_at_the_end": os.getloadavg(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    whole = {"date": date.today().isoformat(), "machine": machine, **content, "bars": bars}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
