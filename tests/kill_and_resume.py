"""Kill the demo run with SIGKILL at random moments, resume it, and compare the result with an uninterrupted run, byte by byte.

    python tests/kill_and_resume.py --kills 20

A checkpoint is written after every step, so that many of the kills fall into the writing of one. The network is timm's
smallest, so that twenty runs take minutes; everything else is the demo run. Exit status 1 if any result differs.
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

from runs import TINY, start

COMPARED = ("model/model.safetensors", "model/metrics.json", "predictions.csv")
DEMO = [
    *TINY, "--dataset", "demo", "--epochs", "4", "--batch_size", "32", "--checkpoint_every", "1steps", "--num_workers", "1",
    "--resume", "auto",
]  # fmt: skip


def hashes(run_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of what must be the same."""
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in COMPARED}


def finish(run_dir: Path) -> tuple[float, float]:
    """Run, or go on with a run, to its end; return after how many seconds it had a checkpoint, and when it ended."""
    started = time.monotonic()
    run = start([*DEMO, "--output_dir", str(run_dir)], run_dir.with_suffix(".log"))
    run.wait_for(run_dir / "checkpoints" / "best")
    first = time.monotonic() - started
    if run.wait(600) != 0:
        raise RuntimeError(f"the run failed:\n{run.output[-3000:]}")
    return first, time.monotonic() - started


def kill_once(run_dir: Path, after_s: float) -> dict[str, object]:
    """Start a run, kill it after some seconds, and say what it was doing."""
    run = start([*DEMO, "--output_dir", str(run_dir)], run_dir.with_suffix(".log"))
    time.sleep(after_s)
    alive = run.process.exitcode is None
    run.kill()
    checkpoints = run_dir / "checkpoints"
    return {
        "after_s": round(after_s, 2),
        "killed": alive,
        "whole_checkpoints": len(list(checkpoints.glob("step-*"))),
        "while_writing_a_checkpoint": bool(list(checkpoints.glob(".*.partial"))),
        "while_finishing": (run_dir / ".model.partial").exists(),
    }


def main() -> int:
    """Run the harness; print one line a kill and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        finish(Path(folder) / "warm-up")  # the fork server imports train.py at its first use
        whole = Path(folder) / "whole"
        first, end = finish(whole)
        expected = hashes(whole)
        print(f"uninterrupted: {end:.1f} s, the first epoch's best weights after {first:.1f} s", flush=True)
        survived, writing, number = 0, 0, 0
        while number < options.kills:
            run_dir = Path(folder) / f"killed-{number}"
            # Every second kill falls into training, the others anywhere from the start to the end.
            record = kill_once(run_dir, moments.uniform(0.8 * first if number % 2 else 0.1, end))
            if record["killed"]:  # otherwise it had ended before
                finish(run_dir)
                same = hashes(run_dir) == expected
                number += 1
                survived += same
                writing += bool(record["while_writing_a_checkpoint"])
                print(json.dumps({"kill": number, **record, "identical": same}), flush=True)
            shutil.rmtree(run_dir, ignore_errors=True)
    print(
        f"{survived} of {options.kills} identical after a kill; {writing} kills fell into the writing of a checkpoint"
    )
    return 0 if survived == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
