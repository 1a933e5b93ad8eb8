"""The training loop: it can be resumed at any optimiser step and then, on a CPU, gives the same weights bit for bit.

Everything random depends on (seed, epoch, image) or (seed, step, rank) alone: the order of the data (accelerate's seedable
sampler), the augmentation (`loaders.LesionDataset`) and dropout. So a checkpoint needs no state of random generators.
"""

import json
import math
import signal
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast, gather_object
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm
from transformers import get_constant_schedule, get_cosine_schedule_with_warmup

from modeling.files import write_json
from modeling.inference import Outputs, run_model
from modeling.network import TimmModel, normalise
from modeling.training.errors import Interrupted, TrainingError, loader_died
from modeling.training.options import checkpoint_interval
from modeling.training.run_folder import CHECKPOINTS, Checkpoints, Run

logger = get_logger(__name__)

MAX_GRAD_NORM = 1.0  # gradients are clipped to it, against rare spikes; the original recipe does not clip
MAX_BAD_STEPS = 20  # in a row with a gradient that is not finite
BEST_NAME = "best.safetensors"  # inside each checkpoint


def mixed_seed(*numbers: int) -> int:
    """Mix numbers into one seed that is unrelated to the seeds of neighbouring numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@dataclass
class Progress:
    """State of the loop: all that a checkpoint holds besides tensors."""

    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    bad_steps: int = 0  # since the last good one
    best_score: float = -1.0  # below every score; scores are in [0, 1]
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)  # a record of each epoch
    timing: list[dict[str, float]] = field(default_factory=list)  # of each epoch; apart, since it differs between runs


@dataclass(frozen=True)
class Fitted:
    """The model with its best weights, and its outputs for the loaders of these names (`make_loaders`)."""

    model: TimmModel
    val: Outputs
    reprocessed: Outputs
    history: list[dict[str, Any]]  # a record of each epoch


class StopRequest:
    """Remember SIGTERM (sent by cluster schedulers on preemption) and Ctrl-C until the loop reaches its next step.

    One request may arrive as several signals: to the whole group, and from a launcher that passes it on. So a second one
    does not stop at once; use SIGKILL.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.previous = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore(self) -> None:
        """Put the former signal handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        self.signal = self.signal or signal.Signals(number).name


class Trainer:
    """The training of one run: make it, `resume` or not, `train`, then load `best_weights` into `evaluated_model`."""

    def __init__(self, run: Run, model: TimmModel, loaders: dict[str, Any], metric: Any) -> None:
        """Set up optimiser, schedule and weight average as the options of the run say; the model is trained in place.

        `loaders` are "train" and "val" of `make_loaders`; `metric` is the `evaluate.Metric` of val.
        """
        self.run, self.options, self.accelerator = run, run.options, run.accelerator
        self.train_loader, self.val_loader, self.metric = loaders["train"], loaders["val"], metric
        options, accelerator = self.options, self.accelerator
        original = options.recipe == "original"
        self.selection = "accuracy" if original else "balanced_accuracy"
        self.max_grad_norm = math.inf if original else MAX_GRAD_NORM
        module: Any = model.to(accelerator.device)  # a TimmModel and nn.Module
        if original:
            optimizer: Any = torch.optim.Adam(module.parameters(), lr=options.learning_rate)
            self.scheduler: Any = get_constant_schedule(optimizer)
        else:
            optimizer = create_optimizer_v2(
                module, opt="adamw", lr=options.learning_rate, weight_decay=options.weight_decay or 0.0, fused=True
            )
            steps_per_epoch = -(-len(self.train_loader) // options.gradient_accumulation_steps)
            self.scheduler = get_cosine_schedule_with_warmup(  # not prepared: it counts the steps of the whole run
                optimizer,
                num_warmup_steps=round((options.warmup_epochs or 0) * steps_per_epoch),
                num_training_steps=options.epochs * steps_per_epoch,
            )
        self.ema = ModelEmaV3(module, decay=options.ema_decay, use_warmup=True) if options.ema_decay else None
        if options.compile:
            module = torch.compile(module)
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        # The network that is trained, without the wrappers of accelerate and torch.compile, and the one that is scored and kept.
        self.network: TimmModel = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.evaluated_model: TimmModel = self.network if self.ema is None else self.ema.module
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(self.scheduler)

        self.checkpoints = Checkpoints(run.dir / CHECKPOINTS, accelerator)
        self.save_seconds, self.save_steps = checkpoint_interval(options.checkpoint_every)
        self.progress = Progress()
        self.stop_request = StopRequest()
        self.saved_at = (time.monotonic(), 0)
        # Since the last optimiser step: the sum of the losses, and the number of images.
        self.window_loss = torch.zeros((), device=accelerator.device)
        self.window_images = 0
        self.best_weights: dict[str, torch.Tensor] = {}  # in main memory: a full disk cannot take them

    def train(self) -> None:
        """Train until the last epoch, or until `--patience` ends training.

        Raises:
            Interrupted: If a signal asked to stop; a checkpoint was written.
            TrainingError: If training cannot go on.
        """
        if self.progress.step == 0 and self.progress.epoch == 0:
            self._keep_weights()
            self.save()  # so that a full disk shows up before the first epoch
        progress, patience = self.progress, self.options.patience or math.inf
        while progress.epoch < self.options.epochs and progress.epoch - 1 - progress.best_epoch < patience:
            started, seen_before = time.monotonic(), self.progress.images_seen  # not 0 if resumed in mid-epoch
            try:
                self.train_epoch()
                self.finish_epoch(started, seen_before)
            except Exception as error:
                # A signal to the whole group can reach a loader process before it ignores signals.
                if self.stop_request.signal is None or not loader_died(error):
                    raise
                if self.accelerator.num_processes == 1 and self.accelerator.sync_gradients:
                    self.save()
                raise Interrupted(f"stopped by {self.stop_request.signal}.") from error
        self.stop_request.restore()

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        progress, loader = self.progress, self.train_loader
        loader.dataset.set_epoch(progress.epoch)
        loader.set_epoch(progress.epoch)
        if progress.batches_done:  # resumed in mid-epoch
            loader = self.accelerator.skip_first_batches(loader, progress.batches_done)
        self.model.train()
        with tqdm(
            total=len(self.train_loader),
            initial=progress.batches_done,
            desc=f"epoch {progress.epoch + 1}/{self.options.epochs}",
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
        """One forward and backward pass; one optimiser step when the accumulation window is complete."""
        seed = mixed_seed(
            self.options.seed, self.progress.epoch, self.progress.batches_done, self.accelerator.process_index
        )
        torch.manual_seed(seed)  # so that a resumed run has the same dropout
        with self.accelerator.accumulate(self.model):
            pixels = batch["pixels"]
            if self.options.consistency:
                pixels = pixels.transpose(0, 1).flatten(0, 1)  # (B, 2, S, S, 3) to (2B, S, S, 3)
            pixel_values = normalise(pixels, self.network.pretrained_cfg)
            with self.accelerator.autocast():
                logits = self.model(pixel_values)  # (B, C), of two views (2B, C)
            loss = self.loss(logits.float(), batch["label"])
            # accelerate divides by a full window of accumulation; the last window of an epoch may be shorter.
            full = self.accelerator.gradient_accumulation_steps
            in_window = min(full, len(self.train_loader) - self.progress.batches_done // full * full)
            self.accelerator.backward(loss * (full / in_window))
            self.progress.batches_done += 1
            self.window_loss += loss.detach() * len(batch["label"])
            self.window_images += len(batch["label"])
            if self.accelerator.sync_gradients:
                self._finish_window()

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy; of two views, plus the Jensen-Shannon divergence of their answers, times --consistency."""
        if not self.options.consistency:
            return nn.functional.cross_entropy(logits, labels)
        first, second = logits.log_softmax(dim=1).chunk(2)
        middle = torch.logaddexp(first, second) - math.log(2)
        apart = 0.5 * ((first.exp() * (first - middle)).sum(1) + (second.exp() * (second - middle)).sum(1)).mean()
        return nn.functional.cross_entropy(logits, labels.repeat(2)) + self.options.consistency * apart

    def _finish_window(self) -> None:
        """Take an optimiser step, or skip it on all processes if the gradient is not finite."""
        progress = self.progress
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        # One copy from the GPU a step, since each copy waits for the GPU.
        loss, gradient_norm = torch.stack([self.window_loss, norm]).tolist()
        self.window_loss.zero_()
        images, self.window_images = self.window_images, 0
        if math.isfinite(gradient_norm):  # of the gradients of all processes, so all of them decide alike
            self.optimizer.step()
            progress.loss_sum += loss
            progress.images_seen += images
            progress.step += 1
            progress.bad_steps = 0
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update(self.network, step=progress.step)
        else:
            if self.accelerator.scaler is not None:
                self.optimizer.step()  # fp16: the scaler skips it and lowers its scale, which is normal at the start
            progress.bad_steps += 1
            where = f"batch {progress.batches_done} of epoch {progress.epoch + 1}"
            logger.warning(f"the gradient of {where} is not finite (loss {loss:g}); the step is skipped.")
            if progress.bad_steps == MAX_BAD_STEPS:
                raise TrainingError(
                    f"{MAX_BAD_STEPS} steps in a row had no finite gradient, so training gives up. Lower --learning_rate, or use "
                    "--mixed_precision no. The log and the checkpoints are kept."
                )
        self.optimizer.zero_grad()

    def _answer_requests(self) -> None:
        """Between two steps: write a checkpoint if one is due, and stop if a signal came."""
        seconds, steps = time.monotonic() - self.saved_at[0], self.progress.step - self.saved_at[1]
        # Clocks and signals differ between processes: all do what one of them has to.
        if seconds >= self.save_seconds or steps >= self.save_steps or self.stop_request.signal is not None:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            self.save()
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop_request.signal is not None:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            raise Interrupted(f"stopped by {self.stop_request.signal or 'another process'}; a checkpoint was written.")

    def finish_epoch(self, started: float, seen_before: int) -> None:
        """Score val, keep the weights if they are the best so far, log, and write a checkpoint."""
        progress, accelerator = self.progress, self.accelerator
        # Each process has batch statistics of other images, but one model is scored: that of the first.
        for buffer in self.evaluated_model.buffers():
            buffer.copy_(broadcast(buffer))
        outputs = run_model(self.evaluated_model, self.val_loader, accelerator)
        logits = torch.from_numpy(outputs.logits).double()
        metrics = self.metric.compute(predictions=logits.softmax(dim=1).numpy(), references=outputs.labels)
        loss_sum, images_seen = map(sum, zip(*gather_object([(progress.loss_sum, progress.images_seen)]), strict=True))
        seconds = time.monotonic() - started
        images_per_second = (progress.images_seen - seen_before) * accelerator.num_processes / seconds
        record = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train/loss": loss_sum / max(images_seen, 1),
            "val/loss": float(nn.functional.cross_entropy(logits, torch.from_numpy(outputs.labels))),
            **{f"val/{name}": value for name, value in metrics.items()},
        }
        is_best = metrics[self.selection] > progress.best_score
        if is_best:
            progress.best_score, progress.best_epoch = metrics[self.selection], progress.epoch
            self._keep_weights()
        progress.history.append(record)
        progress.timing.append({"seconds": round(seconds, 2), "images_per_second": round(images_per_second, 2)})
        progress.epoch, progress.batches_done, progress.loss_sum, progress.images_seen = progress.epoch + 1, 0, 0.0, 0
        self._log(is_best)
        self.save()
        if progress.epoch < self.options.epochs:
            self._stop_if_asked()

    def _keep_weights(self) -> None:
        # A copy, also where they are in main memory already, because training changes them.
        weights = self.evaluated_model.state_dict()
        self.best_weights = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in weights.items()}

    def _log(self, is_best: bool) -> None:
        """Report the last epoch: a line to read, a line of log.jsonl, and the trackers of --report_to."""
        record, timing = self.progress.history[-1], self.progress.timing[-1]
        if self.accelerator.is_main_process:
            self._write_log()
            # An epoch in which the run was resumed took less than a whole one.
            longest = max(entry["seconds"] for entry in self.progress.timing)
            left = timedelta(seconds=round(longest * (self.options.epochs - record["epoch"])))
            tqdm.write(
                f"epoch {record['epoch']:>3}/{self.options.epochs}  train loss {record['train/loss']:.4f}  "
                f"val loss {record['val/loss']:.4f}  val balanced accuracy {record['val/balanced_accuracy']:.4f}  "
                f"val accuracy {record['val/accuracy']:.4f}  {timing['images_per_second']:.0f} images/s  {left} of training left"
                f"{'  best so far' if is_best else ''}"
            )
        values = {name: value for name, value in {**record, **timing}.items() if name != "step"}
        self.accelerator.log(values, step=record["step"])

    def _write_log(self) -> None:
        """Write log.jsonl, one JSON object per epoch; a resumed run writes it again."""
        lines = zip(self.progress.history, self.progress.timing, strict=True)
        text = "".join(f"{json.dumps({**record, **timing})}\n" for record, timing in lines)
        (self.run.dir / "log.jsonl").write_text(text)

    def save(self) -> None:
        self.saved_at = (time.monotonic(), self.progress.step)
        self.checkpoints.save(self.progress.step, self._write_state)

    def _write_state(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            save_file(self.best_weights, folder / BEST_NAME, metadata={"format": "pt"})
        # Each process has summed the losses of its own images.
        write_json(folder / f"progress-{self.accelerator.process_index}.json", asdict(self.progress))

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False if there is none.

        Raises:
            TrainingError: If it cannot be read.
        """
        folder = self.checkpoints.latest()
        if folder is None:
            return False
        try:
            self.accelerator.load_state(str(folder))
            progress = (folder / f"progress-{self.accelerator.process_index}.json").read_text(encoding="utf-8")
            self.progress = Progress(**json.loads(progress))
            # Cloned, since load_file maps the file, and the checkpoint is deleted while training goes on.
            self.best_weights = {key: value.clone() for key, value in load_file(folder / BEST_NAME).items()}
        except Exception as error:  # torch, safetensors and json each have their own for a damaged file
            raise TrainingError(
                f"{folder} cannot be read ({error}). Delete it to continue from the one before."
            ) from error
        self.saved_at = (time.monotonic(), self.progress.step)
        if self.accelerator.is_main_process:
            self._write_log()
        return True
