"""What decides the weights of a run: its optimiser, its learning rate, and what happens in a step.

Folder, log and checkpoints are `pretrain`'s; whoever has a method and batches trains with this alone.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.core.precision import at_least_float32
from pantomim.core.schedule import half_cosine
from pantomim.engine.runtime import (
    Purpose,
    autocast,
    clip_gradients,
    compile_whole,
    compiles,
    compute_dtype,
    generator,
    random_seed,
)
from pantomim.engine.setup import optimiser
from pantomim.methods.base import Method
from pantomim.nn.blocks import DropPath, drawing_for, stream_in_bfloat16
from pantomim.optim import Schedule, scaled_lr

# Of the steps by which a run is extended: so long the rate rises linearly from the least to that of a run of the
# whole length. Ours; Ibrahim et al. 2024, arXiv:2403.08763, re-warm to the peak, and find that the length of this
# matters little
REWARMING = 0.05
BUCKET_MB = 100  # of gradients: by counts such cut a compiled ViT-B into about 5 graphs, those of 25 MB into 18


class Training:
    """A method, built and on its device, with its optimiser and learning rate; `total` and `warmup` are steps.

    `since` is the step from which on the run is extended: there the rate rises once more (see `rewarming`).

    Precision float32 means that nothing is cast: a float64 method stays one.
    """

    def __init__(
        self, config: Pretrain, method: Method, total: int, warmup: int, accelerator: Accelerator, since: int = 0
    ) -> None:
        optim = config.optim
        self.config, self.method, self.accelerator = config, method, accelerator
        self.device = next(method.parameters()).device
        self.dtype = compute_dtype(config.runtime, self.device)
        self.total, self.length = total, int(optim.stretch * total)  # of the run, and of the schedules
        self.since, self.rewarming = since, max(1, round(REWARMING * (total - since))) if since else 0
        peak_lr = scaled_lr(optim.base_lr, config.batch_size)
        schedule = Schedule(peak_lr, optim.min_lr, warmup, self.length, optim.start_lr)
        rates: dict[str, Callable[[float], float]] = {
            "mae": schedule.mae,
            "beit": schedule.beit,
            "drop": partial(schedule.drop, at=optim.drop_at),
            "poly": schedule.poly,
            "mmcv": schedule.mmcv,
        }
        self._rate = rates[optim.schedule]
        # of the loss in float16, whose small gradients would be zero; a step whose gradients overflow is left out
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.optimizer = optimiser(optim, method, peak_lr)
        if config.runtime.precision == "bfloat16_residual":
            stream_in_bfloat16(method)
        self._model: nn.Module = method.train()
        self._dropping = [part for part in method.modules() if isinstance(part, DropPath)]

    def share_out(self) -> None:
        """Compile the forward pass, if the config says so, and share it out among the processes."""
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.method)  # statistics of the whole step
        gathers = self.accelerator.num_processes > 1 and self.method.requirements.gathers
        if compiles(self.config.runtime, self.device, self.total, gathers):
            compile_whole(self.method)
        # Buffers are the same everywhere, but for the statistics of a process's own batch norm: the first's count.
        own = any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in self.method.modules())
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=own, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
        )
        self.accelerator.ddp_handler = ddp
        with warnings.catch_warnings():  # newer torch has another name for it, which Accelerate does not know
            warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated")
            self._model = self.accelerator.prepare_model(self.method.train())

    def watched(self, means: dict[str, Tensor]) -> list[Tensor]:
        """What must be finite after a step; a scaled loss may make gradients overflow, but not for ever."""
        loss = means["loss"]
        if self.scaler.is_enabled():  # the scale as a tensor, as reading it would wait for the device
            return [loss, loss / self.scaler.scale(torch.ones_like(loss))]
        return [loss, means["grad_norm"]]

    def lr(self, step: int) -> float:
        """The learning rate of a step's update."""
        passed = step - self.since
        if not 0 <= passed < self.rewarming:
            return self._rate(self._place(step))
        least, reached = self.config.optim.min_lr, self._rate(self._place(self.since + self.rewarming))
        return least + (reached - least) * (passed + 1) / (self.rewarming + 1)

    def weight_decay(self, step: int) -> float:
        """The weight decay of a step's update, for those parameters that have any."""
        optim = self.config.optim
        if optim.weight_decay_end is None:
            return optim.weight_decay
        return half_cosine(optim.weight_decay, optim.weight_decay_end, min(self._place(step) / self.length, 1.0))

    def _place(self, step: int) -> int:
        """Where the schedules are at a step."""
        return max(step + self.config.optim.lead, 0)

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One update of the weights, by the micro-batches of this process.

        Returns: the outputs of the method (mean over the micro-batches), and "grad_norm", before clipping; all of
            them before the update, on the device.
        """
        method, optimizer, seed = self.method, self.optimizer, self.config.runtime.seed
        # set lr and weight decay
        lr, weight_decay = self.lr(step), self.weight_decay(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            if group["weight_decay"]:
                group["weight_decay"] = weight_decay

        # draw, forward, backward
        means: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, 1):
            torch.manual_seed(random_seed(seed, step, Purpose.FORWARD))  # of stochastic depth
            last = number == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self._model), drawing_for(self._dropping, batch):
                with autocast(self.device, self.dtype):  # of what guides the draws, too
                    draws = method.draw(batch, step, generator(seed, step, self.device))
                    outputs = self._model(batch, draws)
                self.accelerator.backward(self.scaler.scale(outputs["loss"] / len(batches)))
            for name, value in outputs.items():
                means[name] = means.get(name, 0.0) + at_least_float32(value.detach()) / len(batches)

        # clip
        self.scaler.unscale_(optimizer)
        means["grad_norm"] = clip_gradients(method.parameters(), self.config.optim.clip_norm)

        # optimizer.step
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # method.update_ema
        method.update_ema(step)
        return means


def describe_extension(training: Training) -> str:
    """The new shape of the schedule of a run that is extended, in one line."""
    since, total, rewarming, least = training.since, training.total, training.rewarming, training.config.optim.min_lr
    reached = training.lr(since + rewarming)
    return (
        f"The run is extended from {since} to {total} steps with its optimiser: the rate rises from {least:.2g} "
        f"to {reached:.2g} in {rewarming} steps, and then is as in a run of {total} steps."
    )
