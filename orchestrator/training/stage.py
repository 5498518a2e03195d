"""One training stage from start to artefact. Reads top to bottom; each idea it uses has a file of its own."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from orchestrator.planning.plan import TrainStage
from orchestrator.training.calibration import gradients_over
from orchestrator.training.checkpoint import save_network
from orchestrator.training.data import check_classes, check_tells_apart, training_loader, validation_loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.evaluate import SMALLEST_BATCH, Evaluation, evaluate
from orchestrator.training.finished import result_of
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext
from orchestrator.training.meter import LossMeter
from orchestrator.training.mixing import Mixing
from orchestrator.training.network import assemble
from orchestrator.training.order import Key, TrainOrder, accumulation_steps, check_fits
from orchestrator.training.precision import Precision
from orchestrator.training.progress import Position, ProgressStore
from orchestrator.training.running import Running
from orchestrator.training.seeding import derive, determinism, seed_all
from orchestrator.training.settle import settle
from orchestrator.training.sources import open_images
from orchestrator.training.stopping import StopVote
from orchestrator.training.stopwatch import Stopwatch
from orchestrator.training.targets import meet_targets, values_of
from strategies.dynamic.exit_target import Found
from strategies.gradients import Gradients
from strategies.losses import total_loss

SECONDS_BETWEEN_REPORTS = 0.5


def run_train_stage(stage: TrainStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """Train a stage to its end and commit `stages/<digest>`; every worker of the group calls it.

    A stage that is committed already is not trained again. One with committed progress goes on from it; on one device
    the result is then the same, bit for bit, as without the interruption.

    Returns:
        The content of `result.json`.

    Raises:
        StageInterrupted: after `io.should_stop()` or past the deadline, with the progress committed.
        SlimvitError: for everything that a user can mend (data, spec, store, a loss that is not finite).
    """
    name = f"stages/{stage.digest}"
    if io.store.committed(name):
        # Whoever committed it may have been killed before clearing up.
        if context.rank == 0:
            ProgressStore(io.store, stage.digest, io.scratch).clear()
        return result_of(io.store, name)
    with determinism(torch.device(context.device), context.threads):
        return _train(stage, context, io)


def _train(stage: TrainStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    started = time.monotonic()
    training, device = stage.training, torch.device(context.device)
    group = WorkerGroup(context)
    precision = Precision(training.precision, device)
    images_seed = stage.seed if stage.images_seed is None else stage.images_seed
    mixing = Mixing(training, stage.num_classes, images_seed)
    # Who is mixed with whom follows from the order, so a stored teacher fixes that too.
    order_seed = images_seed if mixing.on else stage.seed

    # Images
    accumulation = accumulation_steps(training.batch_size, training.micro_batch, group.world_size, mixing.on)
    micro_batch = training.batch_size // (accumulation * group.world_size)
    images = open_images(stage.data, "train")
    check_classes(images, stage.num_classes)
    if training.epochs:
        check_fits(len(images), training.batch_size)
    evaluation_batch = max(micro_batch, SMALLEST_BATCH)
    validation = validation_loader(stage.data, evaluation_batch, device, rank=group.rank, world_size=group.world_size)
    check_classes(validation.source.images, stage.num_classes)
    check_tells_apart(validation.source.images)

    order = TrainOrder(
        len(images), training.batch_size, accumulation, training.epochs, order_seed, group.rank, group.world_size
    )
    steps_per_epoch, total_steps = order.steps_per_epoch, order.total_steps

    # Networks: component → dynamic → distillation inside `assemble`, then average, compile, DDP in `Running`
    networks = assemble(stage, io.store, device)
    running = Running(stage, networks, group, steps_per_epoch)
    teacher, stored = networks.teacher, networks.stored
    teach = torch.compile(teacher) if training.compile and teacher is not None else teacher

    # Where to go on from
    progress_store = ProgressStore(io.store, stage.digest, io.scratch)
    first_step = group.from_first(progress_store.latest_sound() if group.is_first else 0)
    position = Position()
    if first_step:
        running.begin_at(progress_store.shapes(first_step))
        position = progress_store.load(first_step, running.trainable(precision))
    earlier = replace(position)
    meter = LossMeter(stage.label, eager=device.type == "cpu")
    meter.sums = position.sums if group.is_first else {}
    teaching = Stopwatch(device)
    evaluation: Evaluation | None = None
    targets: dict[str, Found] = {}

    def progress_at(kind: Any, step: int, values: dict[str, float]) -> Progress:
        epoch = -(-step // steps_per_epoch) if steps_per_epoch else 0
        return Progress(kind, stage.digest, epoch, step, total_steps, values)

    def report(kind: Any, step: int, values: dict[str, float]) -> None:
        if group.is_first:
            io.report(progress_at(kind, step, values))

    def add_up_time() -> None:
        spent = time.monotonic() - started
        position.total_s, position.device_s = earlier.total_s + spent, earlier.device_s + spent * group.world_size
        position.teacher_s = earlier.teacher_s + teaching.read()

    def save_progress() -> None:
        position.sums = group.sum_by_name(meter.sums)
        add_up_time()
        if group.is_first:
            progress_store.save(position, running.trainable(precision))

    def evaluate_now(step: int) -> Evaluation:
        """Evaluate; at the stage's end after thresholds were found, where targets ask for them."""
        judged = (stage.label, running.evaluated, validation, running.strategies, precision, group)
        if step == total_steps:
            targets.update(meet_targets(*judged))
        found = evaluate(*judged)
        return found._replace(values=found.values | values_of(targets))

    def close_epoch() -> Evaluation | None:
        """Evaluate, if it is time, and report. The epoch's checkpoint is there already: a kill repeats only this."""
        epoch, found, values = position.step // steps_per_epoch, None, position.history[-1]["values"]
        if position.step == total_steps or epoch % training.eval_every == 0:
            found = evaluate_now(position.step)
            values |= found.values
        report("epoch", position.step, values)
        return found

    def loss_of(
        network: nn.Module, pixels: Tensor, target: Tensor, shown: list[Key]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on a micro-batch, and its terms."""
        with precision.autocast():
            out, taught = network(pixels), None
            if teach is not None:
                with torch.no_grad(), teaching.running():
                    taught = teach(pixels)
            elif stored is not None:
                with teaching.running():
                    taught = stored(shown)
        answer = None if taught is None else precision.full(taught)
        return total_loss(running.strategies, precision.full(out), answer, target, training.label_smoothing)

    def batches_from(step: int) -> Iterator[tuple[Tensor, Tensor, list[Key]]]:
        """Micro-batches from a step on, mixed, and which images they show."""
        ahead = replace(order, start=step)
        loader = training_loader(images, stage.data, training.augmentation, ahead, images_seed, device)
        for i, (batch, shown) in enumerate(zip(loader, ahead, strict=False)):
            yield *mixing(*batch, step + i // accumulation), shown

    def gradients_at(step: int, num_images: int) -> Gradients:
        """Of the loss on the images that come next."""
        seed_all(derive(stage.seed, "calibration", step, group.rank), device)
        ahead = islice(batches_from(step), -(-num_images // (micro_batch * group.world_size)))
        return gradients_over(
            running.student,
            ahead,
            lambda *batch: loss_of(running.student, *batch)[0],
            group,
            precision.scaler.get_scale(),  # 1 where nothing is scaled
        )

    report("resumed" if first_step else "start", first_step, {})
    running.student.train()
    stop_vote = StopVote(group, io.should_stop, context.deadline_s)
    if first_step and first_step % steps_per_epoch == 0:
        evaluation = close_epoch()
    batches = batches_from(first_step)
    clock = reported = time.perf_counter()
    steps_since_report = 0

    for step in range(first_step, total_steps):
        running.cut_at(step, partial(gradients_at, step))
        for strategy in running.strategies:
            strategy.at(running.student, step / total_steps)
        assert running.schedule is not None
        running.schedule.step_update(step)
        seed_all(derive(stage.seed, "step", step, group.rank), device)
        for micro_step in range(accumulation):
            batch, more_follow = next(batches), micro_step + 1 < accumulation
            with group.no_sync(running.forward) if more_follow else nullcontext():
                loss, terms = loss_of(running.forward, *batch)
                meter.add(step, loss, terms)
                precision.backward(loss / accumulation)
        for strategy in running.strategies:
            strategy.after_backward(running.student, step / total_steps)
        precision.step(running.optimizer, running.parameters, training.clip_grad)
        position.step = done = step + 1
        if running.ema is not None:
            running.ema.update(running.student, step=done)

        steps_since_report += 1
        now = time.perf_counter()
        if now - reported >= SECONDS_BETWEEN_REPORTS:
            meter.read()
            speed = steps_since_report * training.batch_size / (now - reported)
            report("step", done, {"loss": meter.latest, "lr": running.rate, "images_per_s": speed})
            reported, steps_since_report = now, 0

        end_of_epoch, end = done % steps_per_epoch == 0, done == total_steps
        stop = stop_vote() if not end else None
        due = training.checkpoint_every_steps is not None and done % training.checkpoint_every_steps == 0
        if not (end_of_epoch or due or stop):
            continue

        meter.read()
        now = time.perf_counter()
        position.training_s += now - clock
        if end_of_epoch:
            values = meter.means(group.sum_by_name(meter.sums))
            values |= {"lr": running.rate}
            values |= {"images_per_s": done * training.batch_size / position.training_s}
            position.history.append(asdict(progress_at("epoch", done, values)))
            meter.sums = {}
        save_progress()
        if stop:
            group.wait()
            raise StageInterrupted(f"stage `{stage.label}` stopped after step {done} of {total_steps}: {stop}")
        if end_of_epoch:
            evaluation = close_epoch()
        clock = reported = time.perf_counter()
        steps_since_report = 0

    if evaluation is None:  # a stage of 0 epochs
        evaluation = evaluate_now(total_steps)
    metrics = position.history[-1]["values"] if total_steps else evaluation.values
    add_up_time()
    result = {
        "metrics": {k: v for k, v in metrics.items() if k not in ("lr", "images_per_s")},
        "seconds": position.total_s,
        "device_hours": position.device_s / 3600,
        "teacher_seconds": position.teacher_s,
        "images_per_s": total_steps * training.batch_size / position.training_s if total_steps else None,
        "epochs": training.epochs,
        "steps": total_steps,
        "environment": environment_of(context),
    }
    if targets:
        result["targets"] = {name: asdict(found) for name, found in targets.items()}
    if group.is_first:
        folder = io.scratch / "artefact"
        shutil.rmtree(folder, ignore_errors=True)
        save_network(
            folder, running.evaluated, networks.model, stage.strategies, stage.num_classes, networks.facts.teachers
        )
        (folder / "stage.json").write_text(stage.model_dump_json(indent=1), encoding="utf-8")
        (folder / "history.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in position.history), encoding="utf-8"
        )
        (folder / "evaluation.json").write_text(evaluation.outcomes.to_json(), encoding="utf-8")
        result = settle(io.store, f"stages/{stage.digest}", folder, result)
        progress_store.clear()
    group.wait()
    return result


def environment_of(context: WorkerContext) -> dict[str, Any]:
    """What the numbers may depend on."""
    device = torch.device(context.device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "workers": context.world_size,
        "threads": context.threads,
    }
