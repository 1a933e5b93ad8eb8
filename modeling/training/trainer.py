"""The training loop: one epoch after the other, resumable at any optimiser step, with the same result to the bit.

Everything random depends on (seed, epoch, image) or (seed, step, rank) alone: the order of the data (accelerate's seedable
sampler), the augmentation (`loading.LesionDataset`) and dropout. So a checkpoint needs no state of random generators.
"""

import ctypes
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling.files import flush, write_json
from modeling.inference import run_model
from modeling.network import TimmModel, normalise
from modeling.training.checkpoints import CheckpointError, Checkpoints, any_process

logger = get_logger(__name__)

CONTINUE, SAVE, STOP = 0, 1, 2
SAME_REQUEST_S = 3.0  # in which the signals of one request arrive
BEST_NAME = "best.safetensors"  # inside each checkpoint


# What a loader process that dies looks like from the training process.
LOADER_ERRORS = (RuntimeError, BrokenPipeError, ConnectionResetError, EOFError)


def loader_died(error: BaseException) -> bool:
    """True if one of LOADER_ERRORS means that a loader process died: torch's own RuntimeError, or a pipe that breaks."""
    return not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)


def process_lost(error: BaseException) -> bool:
    """True if an error says that another process of the run is gone: gloo's own RuntimeError, or one of torch.distributed."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def mixed_seed(*numbers: int) -> int:
    """Mix numbers into one seed that is unrelated to those of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class TrainingError(RuntimeError):
    """Training cannot go on; what it reached so far is kept. The message says why and what to do."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C); a checkpoint has been written."""


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds beside tensors."""

    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    bad_steps: int = 0
    best_score: float = -1.0  # below every score, which lie in [0, 1]
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointInterval:
    """How often to write a checkpoint: after so many seconds, steps or epochs. Every epoch ends with one too."""

    number: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "CheckpointInterval":
        """Read "10min", "500steps" or "1epoch".

        Raises:
            ValueError: If it is none of these.
        """
        found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(min|step|epoch)s?", text)
        if found is None or float(found[1]) == 0:
            raise ValueError(f"--checkpoint_every must be like 10min, 500steps or 1epoch, got {text!r}.")
        return cls(float(found[1]), found[2])

    def due(self, *, seconds: float, steps: int) -> bool:
        """True inside an epoch, if so much time or so many steps have passed since the last checkpoint."""
        return (self.unit == "min" and seconds >= 60 * self.number) or (self.unit == "step" and steps >= self.number)


class StopRequest:
    """Remembers SIGTERM (how clusters announce preemption) and Ctrl-C, for the loop to act on at its next step.

    One request comes as several signals: to the whole group, from a launcher that passes it on, and from one that dies of it.
    So only Ctrl-C pressed again, after a while, stops at once; who sends SIGTERM in vain has SIGKILL.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.asked_at = 0.0
        self.previous = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
            # accelerate's launcher passes no signal on and would leave an orphan: its end is a SIGTERM to us.
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    def restore(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        if self.signal is None:
            self.signal, self.asked_at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.asked_at > SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@dataclass
class Trainer:
    """One run's moving parts. Make it after `accelerator.prepare`; then `resume` or not, then `run`."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    scheduler: Any  # not prepared: it counts optimiser steps of the whole run
    ema: ModelEmaV3 | None  # moving average of the weights, which is then what is evaluated and kept
    train_loader: DataLoader
    val_loader: DataLoader
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]  # probabilities (N, C), labels (N,) → metrics
    selection: str  # the metric that chooses the best epoch
    epochs: int
    patience: int
    max_grad_norm: float
    max_bad_steps: int
    checkpoint_every: CheckpointInterval
    seed: int  # of dropout
    checkpoints: Checkpoints
    log: "EpochLog"
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.stop_request = StopRequest()
        self.saved_at = (time.monotonic(), 0)
        # Of the batches since the last optimiser step: the sum of the losses of so many images.
        self.window_loss = torch.zeros((), device=self.accelerator.device)
        self.window_images = 0
        self.best_weights: dict[str, torch.Tensor] = {}  # in main memory: a full disk cannot take them
        if self.ema is not None:
            self.accelerator.register_for_checkpointing(self.ema)
        self.accelerator.register_for_checkpointing(self.scheduler)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network whose scores are reported and whose weights are kept."""
        return self.ema.module if self.ema is not None else self.network

    @property
    def network(self) -> TimmModel:
        """The network that is trained, without the wrappers of accelerate and torch.compile."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the last epoch or until patience ends; `load_best` then gives the best weights.

        Raises:
            Interrupted: If a signal asked to stop; a checkpoint was written.
            TrainingError: If training cannot go on.
        """
        if self.progress.step == 0 and self.progress.epoch == 0:
            self.save()  # the first "last good state"
        while self.progress.epoch < self.epochs and not self._out_of_patience():
            started, seen_before = time.monotonic(), self.progress.images_seen  # not 0 if resumed in mid-epoch
            try:
                self.train_epoch()
                self.finish_epoch(started, seen_before)
            except LOADER_ERRORS as error:
                # A signal to the whole group can reach a loader process before it has learned to leave it to us.
                if self.stop_request.signal is None or not loader_died(error):
                    raise
                if self.accelerator.num_processes == 1 and self.accelerator.sync_gradients:
                    self.save()
                raise Interrupted(f"stopped by {self.stop_request.signal}.") from error
        self.stop_request.restore()

    def _out_of_patience(self) -> bool:
        return self.progress.best_epoch >= 0 and self.progress.epoch - 1 - self.progress.best_epoch >= self.patience

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        progress = self.progress
        self.train_loader.dataset.set_epoch(progress.epoch)  # type: ignore[attr-defined]
        self.train_loader.set_epoch(progress.epoch)  # type: ignore[attr-defined]
        loader = self.train_loader
        if progress.batches_done:  # resumed in mid-epoch
            loader = self.accelerator.skip_first_batches(loader, progress.batches_done)
        self.model.train()
        with tqdm(
            total=len(self.train_loader),
            initial=progress.batches_done,
            desc=f"epoch {progress.epoch + 1}/{self.epochs}",
            unit="batch",
            leave=False,
            disable=not self.accelerator.is_main_process,
        ) as bar:
            for batch in loader:
                self.train_batch(batch)
                bar.update()
                if self.accelerator.sync_gradients and progress.batches_done < len(self.train_loader):
                    self._answer_requests()

    def train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Take one batch, and one optimiser step where the accumulation is complete."""
        accelerator, progress = self.accelerator, self.progress
        seed = mixed_seed(self.seed, progress.epoch, progress.batches_done, accelerator.process_index)
        torch.manual_seed(seed)  # dropout repeats itself after a resume
        with accelerator.accumulate(self.model):
            pixel_values = normalise(batch["pixels"], self.network.pretrained_cfg)
            with accelerator.autocast():
                logits = self.model(pixel_values)  # (B, C)
            loss = nn.functional.cross_entropy(logits.float(), batch["label"])
            # accelerate divides by a full window of accumulation; the last one of an epoch may be shorter.
            accelerator.backward(loss * (accelerator.gradient_accumulation_steps / self._window_batches()))
            progress.batches_done += 1
            self.window_loss += loss.detach() * len(batch["label"])
            self.window_images += len(batch["label"])
            if not accelerator.sync_gradients:
                return
            norm = accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            # One copy from the GPU a step, since each makes the program wait for it.
            window_loss, gradient_norm = torch.stack([self.window_loss, norm]).tolist()
            self.window_loss.zero_()
            window_images, self.window_images = self.window_images, 0
            # The norm is of the gradients of all processes, so all of them come to the same decision.
            if not math.isfinite(gradient_norm):
                if accelerator.scaler is not None:
                    self.optimizer.step()  # fp16: the scaler leaves the step out and lowers its scale
                self.optimizer.zero_grad()
                if accelerator.scaler is None or any_process(accelerator, not math.isfinite(window_loss)):
                    self._skip_bad_step(window_loss)
                return
            self.optimizer.step()
            self.optimizer.zero_grad()
        progress.loss_sum += window_loss
        progress.images_seen += window_images
        progress.step += 1
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.network, step=progress.step)

    def _window_batches(self) -> int:
        """How many batches the optimiser step that the next batch belongs to is made of."""
        full = self.accelerator.gradient_accumulation_steps
        start = self.progress.batches_done // full * full
        return min(full, len(self.train_loader) - start)

    def _skip_bad_step(self, loss: float) -> None:
        """Leave out a step whose gradient is not finite, and go back to the last good state if it did harm."""
        self.progress.bad_steps += 1
        logger.warning(
            f"the gradient of batch {self.progress.batches_done} of epoch {self.progress.epoch + 1} is not finite (loss "
            f"{loss:g}); skipped, {self.progress.bad_steps} of at most {self.max_bad_steps}."
        )
        if self.progress.bad_steps >= self.max_bad_steps:
            raise TrainingError(
                f"{self.progress.bad_steps} steps had no finite gradient, so training gives up. Lower --learning_rate, or use "
                "--mixed_precision no. The log, the checkpoints and the best weights so far are kept."
            )
        # A forward pass on bad numbers also spoils the running statistics of batch normalisation, on the process that saw
        # them; all go back together, or they would train different networks from here on.
        spoilt = not all(bool(value.isfinite().all()) for value in self.network.state_dict().values())
        if any_process(self.accelerator, spoilt):
            folder = self.checkpoints.latest()
            if folder is None:
                raise TrainingError("the weights are no longer finite and there is no checkpoint to go back to.")
            logger.warning(f"the network itself is not finite any more; going back to {folder.name}.")
            schedule = self.scheduler.state_dict()
            self.accelerator.load_state(str(folder))
            self.scheduler.load_state_dict(schedule)  # the steps that were taken count all the same

    def _answer_requests(self) -> None:
        """Between two steps: write a checkpoint if it is time, and stop if asked to."""
        seconds, steps = time.monotonic() - self.saved_at[0], self.progress.step - self.saved_at[1]
        request = CONTINUE
        if self.stop_request.signal is not None:
            request = STOP
        elif self.checkpoint_every.due(seconds=seconds, steps=steps):
            request = SAVE
        if self.accelerator.num_processes > 1:
            # Clocks and signals differ between processes: the most urgent request is everybody's.
            votes = self.accelerator.gather(torch.tensor([request], device=self.accelerator.device))
            request = int(votes.max())
        if request != CONTINUE:
            folder = self.save()
            if request == STOP:
                written = f"wrote {folder}" if folder else "no checkpoint could be written, an older one remains"
                raise Interrupted(f"stopped by {self.stop_request.signal or 'another process'}; {written}.")

    def finish_epoch(self, started: float, seen_before: int) -> None:
        """Score val, keep the weights if they are the best so far, log, and write a checkpoint."""
        progress = self.progress
        self._share_buffers()
        outputs = run_model(self.evaluated_model, self.val_loader, self.accelerator)
        shifted = torch.from_numpy(outputs.logits).double()
        metrics = self.score(shifted.softmax(dim=1).numpy(), outputs.labels)
        val_loss = float(nn.functional.cross_entropy(shifted, torch.from_numpy(outputs.labels)))
        loss_sum, images_seen = progress.loss_sum, float(progress.images_seen)
        if self.accelerator.num_processes > 1:
            sums = torch.tensor([[loss_sum, images_seen]], dtype=torch.float64, device=self.accelerator.device)
            loss_sum, images_seen = (float(value) for value in self.accelerator.gather(sums).sum(dim=0))
        seconds = time.monotonic() - started
        images_per_second = (progress.images_seen - seen_before) * self.accelerator.num_processes / seconds
        record = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train/loss": loss_sum / max(images_seen, 1),
            "val/loss": val_loss,
            **{f"val/{name}": value for name, value in metrics.items()},
        }
        score = metrics[self.selection]
        is_best = score > progress.best_score
        if is_best:
            progress.best_score, progress.best_epoch = score, progress.epoch
            self.best_weights = {
                # Copied, also where it is in main memory already: training goes on and writes to it.
                key: value.detach().to("cpu", copy=True).contiguous()
                for key, value in self.evaluated_model.state_dict().items()
            }
        progress.history.append(record)
        progress.epoch, progress.batches_done, progress.loss_sum, progress.images_seen = progress.epoch + 1, 0, 0.0, 0
        self._log(record, seconds, images_per_second, is_best)
        self.save()
        if any_process(self.accelerator, self.stop_request.signal is not None) and progress.epoch < self.epochs:
            by = self.stop_request.signal or "another process"
            raise Interrupted(f"stopped by {by} after epoch {progress.epoch}.")

    def _share_buffers(self) -> None:
        """Give every process the batch statistics of the first: each has seen other images, but one model is scored."""
        if self.accelerator.num_processes > 1:
            for buffer in self.evaluated_model.buffers():
                buffer.copy_(broadcast(buffer))

    def _log(self, record: dict[str, Any], seconds: float, images_per_second: float, is_best: bool) -> None:
        timing = {"seconds": round(seconds, 2), "images_per_second": round(images_per_second, 2)}
        if self.accelerator.is_main_process:
            self.log.add({**record, **timing})
            tqdm.write(
                f"epoch {record['epoch']:>3}/{self.epochs}  train loss {record['train/loss']:.4f}  "
                f"val loss {record['val/loss']:.4f}  val balanced accuracy {record['val/balanced_accuracy']:.4f}  "
                f"val accuracy {record['val/accuracy']:.4f}  {images_per_second:.0f} images/s"
                f"{'  best so far' if is_best else ''}"
            )
        self.accelerator.log(
            {key: value for key, value in {**record, **timing}.items() if key != "step"}, step=record["step"]
        )

    # ---- state -----------------------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Write a checkpoint of everything. One that cannot be written is reported and does not end the run."""
        self.saved_at = (time.monotonic(), self.progress.step)
        try:
            return self.checkpoints.save(self.progress.step, self._write_state)
        except CheckpointError as error:
            logger.warning(f"{error}; training goes on and tries again later. Is the disk full?")
            return None

    def _write_state(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process and self.best_weights:
            save_file(self.best_weights, folder / BEST_NAME, metadata={"format": "pt"})
        # Each process has summed the losses of its own images.
        write_json(folder / f"progress-{self.accelerator.process_index}.json", asdict(self.progress))

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none."""
        folder = self.checkpoints.latest()
        if folder is None:
            return False
        self.accelerator.load_state(str(folder))
        progress = (folder / f"progress-{self.accelerator.process_index}.json").read_text(encoding="utf-8")
        self.progress = Progress(**json.loads(progress))
        if self.progress.best_epoch >= 0:
            # Copied, since load_file maps the file, and the checkpoint is deleted while training goes on.
            self.best_weights = {key: value.clone() for key, value in load_file(folder / BEST_NAME).items()}
        self.saved_at = (time.monotonic(), self.progress.step)
        if self.accelerator.is_main_process:
            self.log.go_back_to(self.progress.history)
        return True

    def load_best(self) -> None:
        """Put the best weights into the network that is evaluated.

        Raises:
            TrainingError: If more than a quarter of the steps had no finite gradient.
        """
        taken, skipped = self.progress.step, self.progress.bad_steps
        if taken < 3 * skipped or taken == 0:
            raise TrainingError(
                f"{skipped} of {taken + skipped} steps had no finite gradient, so nothing was learned that could be trusted. "
                "Lower --learning_rate, or use --mixed_precision no. The log and the checkpoints are kept."
            )
        self.evaluated_model.load_state_dict(self.best_weights)


class EpochLog:
    """`log.jsonl`: one JSON object per epoch. It is replaced as a whole, so that no line in it is ever torn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[int, str] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Add an epoch. A disk that is full is reported and does not end the run: the next epoch's line brings this one."""
        self.lines[record["epoch"]] = json.dumps(record)
        self._write()

    def go_back_to(self, history: list[dict[str, Any]]) -> None:
        """Hold the epochs of a run's history and no others: those that will be run again are dropped."""
        written: dict[int, str] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                written[json.loads(line)["epoch"]] = line
            except (ValueError, TypeError, KeyError):
                logger.warning(f"{self.path} has a line that is no epoch; it is dropped: {line[:80]!r}")
        # An epoch that could not be written then lacks nothing but its timing.
        self.lines = {record["epoch"]: written.get(record["epoch"], json.dumps(record)) for record in history}
        self._write()

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        try:
            partial.write_text("".join(f"{line}\n" for line in self.lines.values()), encoding="utf-8")
            flush(partial)
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            logger.warning(f"{self.path} could not be written: {error}; training goes on and tries again later.")
