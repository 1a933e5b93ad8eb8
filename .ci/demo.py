"""Run README's demo command in a folder of its own and check its bars: time, memory, balanced accuracy, last words."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

MAX_SECONDS, MAX_GB, MIN_BALANCED_ACCURACY = 240, 4.0, 0.90


def main() -> int:
    """Return 0 if every bar is met."""
    output_dir = Path(sys.argv[1])
    command = ["accelerate", "launch", "train.py", "--dataset", "demo", "--output_dir", str(output_dir)]
    started = time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - started
    print(result.stdout)
    if result.returncode != 0:
        return result.returncode
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # the largest process, in kB on Linux
    metrics = json.loads((output_dir / "model" / "metrics.json").read_text(encoding="utf-8"))
    balanced_accuracy = metrics["test"]["balanced_accuracy"]["value"]
    print(f"demo: {seconds:.0f} s, {gigabytes:.2f} GB, balanced accuracy {balanced_accuracy:.3f}")
    met = {
        f"at most {MAX_SECONDS} s": seconds <= MAX_SECONDS,
        f"at most {MAX_GB} GB": gigabytes <= MAX_GB,
        f"balanced accuracy at least {MIN_BALANCED_ACCURACY}": balanced_accuracy >= MIN_BALANCED_ACCURACY,
        "ends with the command that opens the Space": f"python space/app.py --model {output_dir / 'model'}"
        in result.stdout.splitlines()[-1],
    }
    for bar, ok in met.items():
        print(f"{'met' if ok else 'MISSED'}: {bar}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
