"""Kill the demo run with SIGKILL at random moments, resume it, and compare the result with an uninterrupted run, byte by byte.

    python tests/stress/kill_and_resume.py --kills 20
    python tests/stress/kill_and_resume.py --kills 20 --processes 2

A checkpoint is written after every step, so that many of the kills fall into the writing of one. The network is timm's
smallest, so that twenty runs take minutes; everything else is the demo run. Of two processes, both are killed, or one: then the
other must end by itself with an error. Exit status 1 if any result differs, or a process had to be waited for too long.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.runs import TINY, start

COMPARED = ("model/model.safetensors", "model/metrics.json", "predictions.csv")
DEMO = [
    *TINY, "--dataset", "demo", "--epochs", "4", "--batch_size", "32", "--checkpoint_every", "1steps", "--num_workers", "1",
    "--resume", "auto",
]  # fmt: skip
LONGEST_WAIT_S = 60  # for the end of the processes that were not killed


def hashes(run_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of what must be the same."""
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in COMPARED}


def finish(run_dir: Path, processes: int) -> list[float]:
    """Run, or go on with a run, to its end; return after how many seconds an epoch, the training and the run had ended."""
    started = time.monotonic()
    run = start([*DEMO, "--output_dir", str(run_dir)], run_dir.with_suffix(".log"), processes=processes)
    moments = []
    for sign in ("log.jsonl", ".model.partial"):
        run.wait_for(run_dir / sign, timeout_s=300)
        moments.append(time.monotonic() - started)
    if run.wait(600) != 0:
        raise RuntimeError(f"the run failed:\n{run.output[-3000:]}")
    return [*moments, time.monotonic() - started]


def kill_once(run_dir: Path, after_s: float, processes: int, rank: int | None) -> dict[str, Any]:
    """Start a run, kill it (or one of its processes) after some seconds, and say what it was doing and how it ended."""
    run = start([*DEMO, "--output_dir", str(run_dir)], run_dir.with_suffix(".log"), processes=processes)
    time.sleep(after_s)
    alive = run.exit_codes[rank or 0] is None
    killed_at = time.monotonic()
    if rank is None:
        run.kill()
    else:
        run.kill_rank(rank)
        run.wait(LONGEST_WAIT_S)
    checkpoints = run_dir / "checkpoints"
    return {
        "after_s": round(after_s, 2),
        "killed": alive,
        "rank": "all" if rank is None else rank,
        "all_ended_after_s": round(time.monotonic() - killed_at, 2),
        "exit_codes": run.exit_codes,
        "whole_checkpoints": len(list(checkpoints.glob("step-*"))),
        "while_writing_a_checkpoint": bool(list(checkpoints.glob(".*.partial"))),
        "while_finishing": (run_dir / ".model.partial").exists(),
    }


def main() -> int:
    """Run the harness; print one line a kill and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    processes = options.processes
    # In turn: all processes, then each of several alone.
    victims = [None, *range(processes)] if processes > 1 else [None]
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        finish(Path(folder) / "warm-up", processes)  # the fork server imports train.py at its first use
        whole = Path(folder) / "whole"
        first, trained, end = finish(whole, processes)
        expected = hashes(whole)
        print(f"uninterrupted: {end:.1f} s; first epoch after {first:.1f} s, all after {trained:.1f} s", flush=True)
        survived, writing, number, longest = 0, 0, 0, 0.0
        while number < options.kills:
            run_dir = Path(folder) / f"killed-{number}"
            # Every second kill falls into training, the others anywhere from the start to the end.
            after_s = moments.uniform(0.8 * first, trained) if number % 2 else moments.uniform(0.1, end)
            record = kill_once(run_dir, after_s, processes, victims[number % len(victims)])
            if record["killed"]:  # otherwise it had ended before
                finish(run_dir, processes)
                same = hashes(run_dir) == expected
                number += 1
                survived += same
                writing += bool(record["while_writing_a_checkpoint"])
                longest = max(longest, record["all_ended_after_s"])
                print(json.dumps({"kill": number, **record, "identical": same}), flush=True)
            shutil.rmtree(run_dir, ignore_errors=True)
    print(
        f"{survived} of {options.kills} identical after a kill, {processes} process(es); {writing} kills fell into the writing "
        f"of a checkpoint; after a kill all processes had ended within {longest:.1f} s"
    )
    return 0 if survived == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
