"""Pre-training, from a config to an encoder: one loop for every method, to be read from top to bottom.

A step is a function of (seed, step) alone: batch, crops, masks and whatever the forward pass draws. So a run that was
stopped, or killed, and is started again gives the same losses as one never stopped.
"""

from contextlib import nullcontext
from pathlib import Path

import torch

from pantomim.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from pantomim.config import Pretrain
from pantomim.data.stream import Stream
from pantomim.engine.failure import save_failure
from pantomim.engine.folder import Finished, RunFolder
from pantomim.engine.initial import start_from
from pantomim.engine.record import Clock, Recorder, peak_memory_gib, read_metrics
from pantomim.engine.runtime import (
    Purpose,
    agree,
    autocast,
    clip_gradients,
    compile_whole,
    compute_dtype,
    generator,
    on_main,
    random_seed,
    start_accelerator,
)
from pantomim.engine.setup import check_fit, check_schedule, describe_start, training_images
from pantomim.engine.stops import FiniteWatch, Interrupted, StopSignals, explain_memory
from pantomim.formats.native import save_decoder, save_encoder
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.vit import Encoder
from pantomim.optim import cosine_schedule, parameter_groups, scaled_lr


def pretrain(config: Pretrain, out: Path) -> Finished:
    """Carry out a run in the folder `out`, go on with it if it was stopped, or leave it if it is complete.

    Raises:
        ValueError: if config, data and folder do not fit each other; before any training.
        RunInUseError: if another process works in the folder.
        Interrupted: after SIGINT or SIGTERM; the last step is saved.
        NonFiniteError: if the loss is no number; the last good checkpoint and the batch are kept.
        MemoryFullError: if a step does not fit in memory.
        CheckpointError: if a checkpoint cannot be written (disk full), or none of those there can be read.
    """
    # ------------------------------------------------------------------------------------------------------ Machine
    accelerator = start_accelerator(config.runtime, out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    dtype = compute_dtype(config.runtime, device)
    seed, accumulation = config.runtime.seed, config.runtime.accumulation
    run = RunFolder(out)
    with run.hold(accelerator, config):
        if (finished := run.finished()) is not None:
            accelerator.end_training()
            return finished

        # --------------------------------------------------------------------------------------------------- Method
        torch.manual_seed(random_seed(seed, 0, Purpose.WEIGHTS))
        method = config.method.build()
        taken = start_from(config.init, method) if config.init else ""
        encoder = method.exports()["encoder"]
        assert isinstance(encoder, Encoder)

        # ----------------------------------------------------------------------------------------------------- Data
        dataset = training_images(config.data)
        check_fit(config, dataset, encoder.in_chans, encoder.patch_size, world)
        stream = Stream(
            dataset,
            batch_size=config.batch_size,
            image_size=encoder.image_size,
            crop=config.data.crop,
            seed=seed,
            device=device,
            rank=rank,
            world=world,
            micro=accumulation,
            workers=config.data.workers,
            memory_gib=config.data.memory_gib,
        )

        # -------------------------------------------------------------------------------------- Optimiser, schedule
        method.to(device)
        total = config.duration.in_steps(stream.steps_per_epoch)
        warmup = config.optim.warmup.in_steps(stream.steps_per_epoch)
        peak_lr = scaled_lr(config.optim.base_lr, config.batch_size)
        check_schedule(config, total, warmup)
        groups = parameter_groups(method, config.optim.weight_decay, decay_tokens=config.optim.decay_tokens)
        optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=config.optim.betas, fused=True)
        log_every = config.runtime.log_every or (1 if total < 200 else 10)
        save_every = config.runtime.save_every or min(max(total // 20, 50), 1000)

        # --------------------------------------------------------------------------------------------------- Resume
        start, clock = 0, Clock()
        if (checkpoint := find_checkpoint(run.checkpoints)) is not None:
            load_checkpoint(checkpoint, method, optimizer)
            start, clock = checkpoint.step, Clock(**checkpoint.progress)
        on_main(accelerator, lambda: run.describe(config, accelerator, start))

        if config.runtime.compile:
            compile_whole(method)
        model = accelerator.prepare_model(method.train())
        watch = FiniteWatch(device)

        def save(step: int) -> None:
            """Write a checkpoint, but never one of weights that are no numbers."""
            stop_if_not_finite(step)
            with clock.paused():
                recorder.sync()
                on_main(
                    accelerator,
                    lambda: save_checkpoint(
                        run.checkpoints,
                        method,
                        optimizer,
                        step=step,
                        seed=seed,
                        progress=clock.progress(),
                        keep=config.runtime.keep,
                    ),
                )

        def stop_if_not_finite(step: int) -> None:
            """Read the watch, which waits for the device, and stop if it saw a bad step."""
            first_bad = int(accelerator.gather(watch.first_bad).min())
            if first_bad < step:
                raise save_failure(run, stream, method, config, first_bad, rank)

        recorder = Recorder(accelerator, run.metrics, start=start, total=total, batch_size=config.batch_size)
        with recorder, StopSignals() as signals:
            recorder.say(describe_start(config, dataset, device, dtype, world, start, total))
            if taken and start == 0:
                recorder.say(taken)

            # ------------------------------------------------------------------------------------------------- Loop
            waited = stream.wait_s
            for step, batches in enumerate(stream.batches(start, total), start):
                # set lr
                lr = cosine_schedule(step, base=peak_lr, minimum=config.optim.min_lr, warmup=warmup, total=total)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]

                # draw, forward, backward
                torch.manual_seed(random_seed(seed, step, Purpose.FORWARD, rank))
                sums: dict[str, torch.Tensor] = {}
                with explain_memory(config, world):
                    for number, batch in enumerate(batches, 1):
                        draws = method.draw(batch, step, generator(seed, step, device))
                        with nullcontext() if number == accumulation else accelerator.no_sync(model):
                            with autocast(device, dtype):
                                outputs = model(batch, draws)
                            accelerator.backward(outputs["loss"] / accumulation)
                        for name, value in outputs.items():
                            sums[name] = sums.get(name, 0.0) + value.detach().float() / accumulation

                    # clip
                    grad_norm = clip_gradients(method.parameters(), config.optim.clip_norm)
                    watch.see(step, sums["loss"], grad_norm)

                    # optimizer.step
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                # method.after_step
                method.after_step(step)
                done = step + 1
                clock.step(config.batch_size, device)

                # log
                stop = False
                if done % log_every == 0 or done == total:
                    stop_if_not_finite(done)
                    stop = agree(accelerator, signals.requested)
                    names = [*sums, "grad_norm"]
                    values = accelerator.reduce(torch.stack([*sums.values(), grad_norm]), reduction="mean").tolist()
                    recorder.log(
                        done,
                        dict(zip(names, values, strict=True))
                        | {
                            "lr": lr,
                            "images_per_s": clock.lap(),
                            "data_wait_s": stream.wait_s - waited,
                            "memory_gib": peak_memory_gib(device),
                            "time_s": clock.total_s,
                        },
                    )
                    waited = stream.wait_s
                elif world == 1:
                    stop = signals.requested

                # save
                if done % save_every == 0 or done == total or stop:
                    save(done)
                if stop and done < total:
                    raise Interrupted(
                        f"Stopped after step {done} of {total}, which is saved in {run.checkpoints}. "
                        f"Run the same command to go on."
                    )

            if dataset.broken:
                named = ", ".join(f"{broken.name} ({broken.reason})" for broken in dataset.broken)
                recorder.say(f"Skipped {len(dataset.broken)} broken images: {named}")

        # ------------------------------------------------------------------------------------------------------- End
        finished = Finished(total, clock.total_s, clock.images_per_s, read_metrics(run.metrics)[-1]["loss"])

        def export() -> None:
            save_encoder(out, encoder, scale=dataset.scale, recipe=config.recipe)
            if isinstance(decoder := method.exports().get("decoder"), MAEDecoder):
                save_decoder(out, decoder)
            run.finish(finished)

        on_main(accelerator, export)
    accelerator.end_training()
    return finished
