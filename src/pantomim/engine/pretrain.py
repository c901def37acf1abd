"""Pre-training, from a config to an encoder: one loop for every method, to be read from top to bottom.

A step is a function of (seed, step) alone: batch, crops, masks and whatever the forward pass draws. So a run that was
stopped, or killed, and is started again gives the same losses as one never stopped.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pantomim.checkpoint import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from pantomim.config import Pretrain
from pantomim.data.dataset import Dataset
from pantomim.data.record import read_record
from pantomim.data.stats import check_normalised, check_scale
from pantomim.engine.folder import Finished, RunFolder, identity_of
from pantomim.engine.initial import start_from
from pantomim.engine.record import Clock, Recorder, peak_memory_gib
from pantomim.engine.runtime import (
    Purpose,
    agree,
    alike,
    autocast,
    compiles,
    compute_dtype,
    end_training,
    gather_broken,
    on_main,
    random_seed,
    start_accelerator,
)
from pantomim.engine.setup import (
    check_fit,
    describe_masks,
    describe_start,
    in_steps,
    open_images,
    shorter,
    stream_opener,
)
from pantomim.engine.stops import (
    FiniteWatch,
    Interrupted,
    Outcome,
    StopSignals,
    WorkerError,
    explain_memory,
    save_failure,
)
from pantomim.engine.training import Training, describe_extension
from pantomim.engine.validation import Judge, judged_by
from pantomim.formats.files import frozen_hashes
from pantomim.formats.native import (
    read_description,
    save_classifier,
    save_decoder,
    save_encoder,
    save_predictor,
    save_segmenter,
    save_tokenizer,
)
from pantomim.methods.base import Method, few_images, few_patches
from pantomim.methods.task import Task
from pantomim.nn.lora import merge_lora
from pantomim.nn.vit import Encoder

NUM_LOOKED_AT = 256  # training images that `Method.check_data` sees
LATE = {"cuda": 3}  # steps after which what is logged is read, on devices that work on while the host goes ahead


def pretrain(config: Pretrain, out: Path, *, method: Method | None = None, dataset: Dataset | None = None) -> Finished:
    """Carry out a run in the folder `out`, resume it if it was stopped, or leave it if it is complete.

    Who has the method and the training images in hand gives them; else they are those that the config names.

    Raises:
        ValueError: if config, data and folder do not fit each other; before any training.
        RunInUseError: if another process works in the folder.
        Interrupted: after SIGINT or SIGTERM; while training, the last step is saved first.
        NonFiniteError, MemoryFullError, CheckpointError, OSError: what they say (`stops`, `checkpoint`).
    """
    # ------------------------------------------------------------------------------------------------------ Machine
    accelerator = start_accelerator(config.runtime, out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    dtype = compute_dtype(config.runtime, device)
    seed, accumulation = config.runtime.seed, config.runtime.accumulation
    run = RunFolder(out)
    with run.hold(accelerator, config) as extending, StopSignals() as signals:
        if not extending and (finished := on_main(accelerator, run.finished)) is not None:
            end_training(accelerator)
            return finished
        checkpoint = find_checkpoint(run.checkpoints)
        before = Progress() if checkpoint is None else checkpoint.progress
        alike(accelerator, "out", 0 if checkpoint is None else checkpoint.step)

        # ---------------------------------------------------------------------------------------------- Data, length
        begun = on_main(accelerator, partial(read_record, out))
        images = open_images(config, dataset, None if begun is None else begun.mask_classes)
        on_main(accelerator, lambda: run.keep_images(images, config.data.source, before.broken))
        images.mark_broken(before.broken)
        dataset, masks = images.train, images.masks
        alike(accelerator, "data", len(dataset))
        total, warmup = in_steps(config, epoch := max(1, len(dataset) // config.batch_size))
        since = config.extended[-1].in_steps(epoch) if config.extended else 0
        if extending:
            on_main(accelerator, lambda: run.extend(config, checkpoint, total, since))

        # --------------------------------------------------------------------------------------------------- Method
        torch.manual_seed(random_seed(seed, 0, Purpose.WEIGHTS))
        if method is None:
            method = config.method.build(total if config.optim.stretch == 1 else config.optim.stretch * total)
        check_fit(config, dataset, method.requirements, world, masks)
        open_stream = stream_opener(config, method.requirements, masks, device, rank, world)
        compiled = device.type == "cuda" and compiles(config.runtime, device, total, False)
        how = {"batch_size": config.batch_size, "micro": accumulation, "repeats": config.data.repeats}
        stream = open_stream(dataset, **how, compiled=compiled)
        log_every = config.runtime.log_every or (1 if total < 200 else 10)
        held_out, judged = judged_by(method, images, config, total, world)
        judge = None
        if held_out is not None:
            judge = Judge(method, held_out, masks, open_stream, epoch, total, config, accelerator, log_every)

        # -------------------------------------------------------------------------------------- Optimiser, schedule
        method.to(device)
        training = Training(config, method, total, warmup, accelerator, since)
        optimizer = training.optimizer
        save_every = config.runtime.save_every or min(max(total // 20, 50), 1000)

        # ------------------------------------------------------------------------------------------ Start or resume
        start, clock, origin = 0, Clock(before.time_s, before.timed_images, before.timed_s), None
        if checkpoint is not None:
            old = bool(since) and checkpoint.step <= since  # of the run before it was extended
            run.check_checkpoint(checkpoint, shorter(config) if old else config, since if old else total)
            load_checkpoint(checkpoint, method, optimizer)
            if before.scaler:
                training.scaler.load_state_dict(before.scaler)
            start = checkpoint.step
        elif config.init is not None:
            names = dataset.classes if masks is None else [masks.names[class_id] for class_id in masks.class_ids()]
            origin = start_from(config.init, method, names or (), config.method)
        check_scale(method, dataset)
        warnings = [few_patches(config.method), few_images(len(dataset))]
        if checkpoint is None and isinstance(encoder := getattr(method, "encoder", None), Encoder):
            warnings.append(check_normalised(encoder, dataset))
        on_main(accelerator, lambda: run.describe(config, accelerator, dtype, start, origin))
        if config.data.partial:
            on_main(accelerator, lambda: run.list_images("training_images.txt", dataset.names))
        if held_out is not None:
            on_main(accelerator, lambda: run.list_images("held_out_images.txt", held_out.names))
        if start == 0 and accelerator.is_main_process:
            with explain_memory(config, world, method.requirements), autocast(device, dtype):
                warnings.append(method.check_data(stream.first_images(NUM_LOOKED_AT)))

        training.share_out()
        watch = FiniteWatch(device)
        told = list(dict.fromkeys([*before.warnings, *(warning for warning in warnings if warning is not None)]))
        loss, size = before.loss, config.batch_size
        recorder = Recorder(accelerator, run.metrics, start=start, total=total, batch_size=size, logged=before.logged)
        with signals.deferred(), recorder, closing(stream.batches(start, total)) as steps:
            where = f"{device.type} in {str(dtype).removeprefix('torch.')}"
            recorder.say(describe_start(config, dataset, judged, where, world, start, total))
            if 0 < since == start:
                recorder.say(describe_extension(training))
            if origin is not None:
                recorder.say(origin)
            for text in told:
                recorder.say(f"Warning: {text}")

            if judge is not None and config.init is not None and not isinstance(method, Task):
                if start == 0:
                    recorder.log(0, judge(0))
                judge.given_rank = recorder.at_start.get("held_out_rankme")

            # ------------------------------------------------------------------------------------------------- Loop
            def judges(done: int) -> bool:
                return judge is not None and judge.due(done)

            def logs(done: int) -> bool:
                return done % log_every == 0 or done == total or judges(done)

            waited, late, outcome = stream.wait_s, LATE.get(device.type, 0), None
            keep, own = config.runtime.keep, identity_of(config, total)
            save = partial(save_checkpoint, run.checkpoints, method, optimizer, seed=seed, keep=keep, run=own)
            for step, batches in enumerate(steps, start):
                with explain_memory(config, world, method.requirements):
                    means = training.step(step, batches)
                watch.see(step, *training.watched(means))
                done = step + 1
                clock.step(config.batch_size, device)

                # what is due; several processes agree on stopping only where they meet anyway
                asked = signals.requested or bool(stream.trouble)
                to_save = done % save_every == 0 or done == total
                stop = asked and world == 1
                if logs(done):
                    outcome = Outcome(done, means, watch, asked, accelerator)
                    lr = training.lr(step)

                # log, before anything that relies on it
                if outcome is not None and (
                    to_save or stop or judges(done) or logs(done + 1) or done - outcome.done >= late
                ):
                    values, bad_step, agreed = outcome.read()
                    stop = stop or agreed
                    if bad_step is not None:
                        raise save_failure(out, stream, method, config, bad_step, rank)
                    values |= {
                        "lr": lr,
                        "images_per_s": clock.lap(),
                        "data_wait_s": stream.wait_s - waited,
                        "memory_gib": peak_memory_gib(device),
                        "time_s": clock.total_s,
                    }
                    waited = stream.wait_s
                    if judge is not None and judges(done):
                        with clock.paused():
                            values |= judge(done)
                    recorder.log(outcome.done, values)
                    loss = values["loss"]
                    for warning in (method.warning(values), None if judge is None else judge.warning(values)):
                        if warning is not None and warning not in told:
                            told.append(warning)
                            recorder.say(f"Warning, at step {outcome.done}: {warning}")
                    outcome = None

                # save
                if to_save or stop:
                    if not logs(done) and (bad_step := watch.first_bad_step(accelerator)) is not None:
                        raise save_failure(out, stream, method, config, bad_step, rank)
                    with clock.paused():
                        recorder.sync()
                        skipped = {image.name: image.reason for image in gather_broken(accelerator, *images.parts)}
                        progress = Progress(
                            *clock.progress(), loss, recorder.logged, skipped, told, training.scaler.state_dict()
                        )
                        on_main(accelerator, partial(save, step=done, progress=progress))
                if stop and done < total:
                    recorder.say_broken(gather_broken(accelerator, *images.parts))
                    saved = f"Stopped after step {done} of {total}, which is saved in {run.checkpoints}."
                    if stream.trouble:
                        raise WorkerError(f"{stream.trouble[0]} {saved} Run the same command, so changed, to resume.")
                    raise Interrupted(f"{saved} Run the same command to resume.")

            broken = gather_broken(accelerator, *images.parts)
            recorder.say_broken(broken)

        # ------------------------------------------------------------------------------------------------------- End
        names = [image.name for image in broken]
        finished = Finished(total, clock.total_s, clock.images_per_s, loss, names, told)

        def export(finished: Finished) -> Finished:
            merge_lora(method)
            parts, told = method.exports(), dict[str, Any](scale=dataset.scale, recipe=config.recipe)
            about = told | parts.pop("about", {})
            trained, resized = parts.get("encoder"), config.data.crop.interpolation
            if isinstance(trained, Encoder) and masks is None:
                trained.config = replace(trained.config, interpolation=resized)  # whatever that of `init` was
            writers: dict[str, Callable[..., None]] = {  # of what a method may leave
                "encoder": partial(save_encoder, **told),
                "decoder": save_decoder,
                "classifier": partial(save_classifier, **about, classes=dataset.classes),
                "segmenter": partial(save_segmenter, **about, **describe_masks(config.data, masks)),
                "predictor": partial(save_predictor, method=config.method.kind, frozen=frozen_hashes(method)),
                "tokenizer": partial(save_tokenizer, **told),
            }
            for name, part in parts.items():
                writers[name](out, part)
            files = {name: read_description(out, name)["sha256"] for name in parts}
            run.finish(finished := replace(finished, files=files))
            return finished

        finished = on_main(accelerator, partial(export, finished))
        if agree(accelerator, signals.requested):  # in the last step or later: nothing else must begin
            raise Interrupted(f"Stopped when the run was complete; all of it is in {out}.")
    end_training(accelerator)
    return finished
