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

from support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# The fork server starts from the environment: it must find train.py, and one thread a process keeps runs comparable.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])

# A network that trains in seconds; it still has batch normalisation, dropout and a moving average.
TINY = ["--backbone", "test_efficientnet", "--pretrained", "false", "--image_size", "32", "--batch_size", "16"]


def _train(arguments: list[str], log: str, environment: dict[str, str], failing_rank: int | None) -> None:
    os.setsid()
    os.environ.update(environment)
    # Loader processes start as in a program of its own, not from yet another fork server that imports everything again.
    multiprocessing.set_start_method(None, force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import train
    from modeling.training.loaders import LesionDataset

    read = LesionDataset.__getitem__

    def read_with_faults(dataset: LesionDataset, index: int) -> dict:
        row = read(dataset, index)
        if dataset.augmentation and dataset.epoch == 1 and environment.get("RANK") == str(failing_rank):
            raise OSError("the disk of this process is gone")
        return row

    LesionDataset.__getitem__ = read_with_faults  # type: ignore[method-assign]
    sys.exit(train.main(arguments))


@dataclass
class Run:
    """One start of train.py, in one or several processes."""

    processes: list[BaseProcess]
    log: Path

    @property
    def process(self) -> BaseProcess:
        """The first process."""
        return self.processes[0]

    def wait(self, timeout_s: float = 240) -> int:
        """Wait for the end of all processes; return 0 or the first exit status that is not."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        if self.alive:
            self.kill()
            raise TimeoutError(f"still running after {timeout_s} s:\n{self.output[-3000:]}")
        return next((code for code in self.exit_codes if code), 0)

    @property
    def alive(self) -> bool:
        return None in self.exit_codes

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL all processes with their loader workers, as a power cut or an out-of-memory killer would."""
        self.signal_group(signal.SIGKILL)
        for process in self.processes:
            process.join()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL one process with its loader workers."""
        _signal_group(self.processes[rank], signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        for process in self.processes:
            _signal_group(process, number)

    def wait_for(self, path: Path, timeout_s: float = 120) -> None:
        """Wait until a file exists."""
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            if not self.alive or time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not appear:\n{self.output[-3000:]}")
            time.sleep(0.01)


def _signal_group(process: BaseProcess, number: int) -> None:
    try:
        os.killpg(process.pid or 0, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process.pid or 0, number)  # it has not made its group yet


def start(
    arguments: list[str],
    log: Path,
    *,
    processes: int = 1,
    failing_rank: int | None = None,
) -> Run:
    """Start train.py with these arguments, its output going to a file.

    Args:
        arguments: As on the command line.
        log: Takes its output.
        processes: How many train together, as `accelerate launch --multi_gpu` would start them.
        failing_rank: Let this process be unable to read images, in the second epoch.
    """
    run = Run([], log)
    for environment in _environments(processes):
        run.processes.append(CONTEXT.Process(target=_train, args=(arguments, str(log), environment, failing_rank)))
        run.processes[-1].start()
    return run


def _environments(processes: int) -> list[dict[str, str]]:
    """Return what the launcher tells each process about the others; nothing if there are none."""
    if processes == 1:
        return [{}]
    common = {
        "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
