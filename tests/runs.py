"""Start train.py in processes of their own, quickly: a fork server has imported it once. For tests and harnesses."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The fork server starts from the environment: it must find train.py, and one thread a process keeps runs comparable.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])

# A network that trains in seconds; it still has batch normalisation, dropout and a moving average.
TINY = ["--backbone", "test_efficientnet", "--pretrained", "false", "--image_size", "32", "--batch_size", "16"]


def _train(arguments: list[str], log: str, spoil_index: int | None) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import train

    if spoil_index is not None:
        read = train.LesionDataset.__getitem__

        def spoilt(dataset: "train.LesionDataset", index: int) -> dict:
            row = read(dataset, index)
            if index == spoil_index and dataset.seed is not None and dataset.epoch == 1:
                row["pixel_values"] = row["pixel_values"] * float("nan")
            return row

        train.LesionDataset.__getitem__ = spoilt  # type: ignore[method-assign]
    sys.exit(train.main(arguments))


@dataclass
class Run:
    """One start of train.py."""

    process: BaseProcess
    log: Path

    def wait(self, timeout_s: float = 240) -> int:
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout_s} s:\n{self.output[-3000:]}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL the process with its loader workers, as a power cut or an out-of-memory killer would."""
        self.signal_group(signal.SIGKILL)
        self.process.join()

    def signal_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid or 0, number)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.process.pid or 0, number)  # it has not made its group yet

    def wait_for(self, path: Path, timeout_s: float = 120) -> None:
        """Wait until a file exists."""
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            if self.process.exitcode is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not appear:\n{self.output[-3000:]}")
            time.sleep(0.01)


def start(arguments: list[str], log: Path, *, spoil_index: int | None = None) -> Run:
    """Start train.py with these arguments, its output going to a file.

    Args:
        arguments: As on the command line.
        log: Takes its output.
        spoil_index: Give this training image pixels that are not finite, in the second epoch.
    """
    process = CONTEXT.Process(target=_train, args=(arguments, str(log), spoil_index))
    process.start()
    return Run(process, log)
