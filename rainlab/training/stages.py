"""The four stages and the autoencoder as runs: what each reads, what it starts from, where its weights are.

    autoencoder ─▶ stage1 ─▶ stage2 ──┐
                     └────▶ distill2d ┴▶ distill3d

`torchrun --nproc_per_node 8 -m rainlab.training.stages stage1 --preset paper` trains a stage on several processes; the
notebook then finds the training done, evaluates and records it. `--export FILE` writes what an unfinished training has
reached, averaged weights; `--finish STEPS FILE` does after a branch of some more steps along which the rate falls to
zero; `--warm FILE` begins a training with such a file where there is nothing to resume, and counts on from its steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainlab import runs
from rainlab.config import PRESETS, Preset, StageConfig, from_words, identity, make_preset
from rainlab.data import dataset
from rainlab.files import digest, root
from rainlab.method import pretrained
from rainlab.method.checkpoint import fill, read_tensors
from rainlab.method.rain import RAIN, start_guidance, to_signed
from rainlab.method.unet import UNet
from rainlab.training import branches, distill, loop, losses
from rainlab.training.parameters import STAGES, check_stage, trainable
from rainlab.training.weights import weights_file, weights_of

VERSIONS = {"autoencoder": 2, "stage1": 2, "stage2": 2, "distill2d": 2, "distill3d": 2}  # raised when results change
INPUTS = {
    "autoencoder": (),
    "stage1": ("autoencoder",),
    "stage2": ("stage1",),
    "distill2d": ("stage1",),
    "distill3d": ("stage2", "distill2d"),
}
WINDOWED = ("stage2", "distill3d")  # trained on windows of neighbouring frames, with motion modules


class Start(NamedTuple):
    """Networks and loss as a stage begins; ``average``: tensors to average the trained ones into, if not copies."""

    model: RAIN
    loss: losses.Loss
    average: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Training:
    """One stage of a preset, on top of the finished stages of ``source``: its own (None), or those of another preset.

    The latter makes a short trial: other steps or clips, starting from where the full training's inputs ended.
    """

    preset: Preset
    stage: str
    source: Preset | None = None

    def __post_init__(self) -> None:
        check_stage(self.stage)
        if not 0 < self.loop.blend <= 1 or (self.loop.blend < 1 and not self.stage.startswith("distill")):
            expected = "a share of a distillation above 0 and at most 1; other stages keep all they learn"
            raise ValueError(f"{section(self.stage)}.blend: got {self.loop.blend}, expected {expected}")
        if self.loop.start and self.stage.startswith("distill"):
            raise ValueError(
                f"{self.stage}.start: got {self.loop.start!r}, expected none: a student begins as its teacher"
            )
        object.__setattr__(self, "source", self.source or self.preset)

    @property
    def loop(self) -> StageConfig:
        """The loop's numbers."""
        return getattr(self.preset, section(self.stage))

    def describe(self) -> tuple[dict, dict[str, str]]:
        """(config, inputs) that determine the result, for :func:`rainlab.runs.open_run`."""
        preset, loop = self.preset, identity(self.loop)
        loop.pop("save_every")  # how often it is saved does not change the result
        config = {"preset": preset.name, "train": loop, "autoencoder": identity(preset.autoencoder)}
        config |= {"data": dataset.clips_of(preset.data, "train").fingerprint(), "margin": preset.data.margin}
        if self.stage != "autoencoder":
            config |= {"model": identity(preset.model), "loss": identity(preset.loss)}
        if self.stage in WINDOWED:
            config["stream"] = identity(preset.stream)
            for only_streaming in ("steps_per_group", "guidance"):
                config["stream"].pop(only_streaming)
        inputs = {name: run_id(self.source, name) for name in INPUTS[self.stage]}
        if self.loop.start:
            inputs["start"] = run_id(make_preset(self.loop.start), self.stage)
        return config, inputs

    @property
    def id(self) -> str:
        """The id of its run, known before it is made."""
        config, inputs = self.describe()
        return runs.run_id(self.stage, config, VERSIONS[self.stage], inputs)

    def open(self) -> runs.Run:
        """Its run in ``runs/``, finished or not."""
        config, inputs = self.describe()
        return runs.open_run(self.stage, config, VERSIONS[self.stage], inputs)

    def start(self, device: str | torch.device = "cpu") -> Start:
        """The networks with the weights they start from, and the loss; teacher and target stand on ``device``, too."""
        torch.manual_seed(self.loop.seed)
        model = build(self.preset, self.stage)
        published = self.preset.model
        if self.stage == "stage1" and published.unet_path:
            pretrained.start(model, spatial=root() / published.unet_path)
        if self.stage == "stage2" and published.motion_path:
            pretrained.start(model, motion=root() / published.motion_path)
        _fill(model, self.source, _chain(self.stage)[:-1])
        if self.loop.start:
            own, other = dict(model.named_parameters()), run_id(make_preset(self.loop.start), self.stage)
            fill({name: own[name] for name in trainable(model, self.stage)}, weights_of(other), other)
        if not self.stage.startswith("distill"):
            return Start(model, loss_of(self.preset, self.stage, model))
        teacher = trained(self.source, INPUTS[self.stage][0], device).denoising_unet
        target = deepcopy(model.to(device).denoising_unet)
        if self.stage == "distill3d":  # the student starts from the 2D one, the target like the teacher (AnimateLCM)
            target.load_state_dict(teacher.state_dict(), strict=False)
            start_guidance(target, 0.0)  # the original network knows no ω
        average = {f"denoising_unet.{name}": parameter for name, parameter in target.named_parameters()}
        return Start(model, loss_of(self.preset, self.stage, model, teacher, target), average)

    @property
    def sampling(self) -> tuple[int, bool, int]:
        """How a sample is drawn, (frames, window, sink) of :meth:`rainlab.data.dataset.TrainingSet.batch`."""
        if self.stage not in WINDOWED:
            return self.loop.targets, False, 0
        return self.preset.stream.window, True, self.preset.stream.sink_frames

    @property
    def checkpoint(self) -> Path:
        """Where its unfinished training is saved."""
        return runs.folder() / self.id / loop.CHECKPOINT

    def begin(
        self, cfg: StageConfig, device: str | torch.device = "cpu"
    ) -> tuple[RAIN, losses.Loss, loop.State, dataset.TrainingSet]:
        """Networks on the device, loss, fresh state, clips; ``cfg``: the loop's numbers, its own or a branch's."""
        clips = self.data(device)
        model, loss, average = self.start(device)
        model.to(device)
        model.denoising_unet.checkpointing = model.reference_unet.checkpointing = cfg.checkpointing
        return model, loss, loop.start(model, trainable(model, self.stage), cfg, average), clips

    def data(self, device: str | torch.device = "cpu", split: str = "train") -> dataset.TrainingSet:
        """The clips of a split as the stage needs them: with latents for all but the autoencoder."""
        cfg = self.preset.data
        clips, run = dataset.cached(dataset.clips_of(cfg, split), cfg.margin, cfg.facing)
        if self.stage == "autoencoder":
            return clips
        autoencoder = trained(self.source, "autoencoder", device).autoencoder
        with run.lock(), loop.alone():  # other processes wait and find them made
            return clips.encode(autoencoder, run.path / f"latents-{run_id(self.source, 'autoencoder')}.npy")


def section(stage: str) -> str:
    """The field of a preset that holds a stage's numbers."""
    return "train_autoencoder" if stage == "autoencoder" else stage


def build(preset: Preset, stage: str) -> RAIN:
    """Fresh networks with the parts that a stage has."""
    return RAIN.build(preset, motion=stage in WINDOWED, guidance=stage.startswith("distill"))


def loss_of(
    preset: Preset, stage: str, model: RAIN, teacher: UNet | None = None, target: UNet | None = None
) -> losses.Loss:
    """What a stage minimises, for networks as they are; ``teacher`` and ``target`` belong to the distillations.

    Raises:
        ValueError: ``stage2.times`` is unknown.
    """
    if stage == "autoencoder":
        return losses.autoencoder_loss(model)
    if stage == "stage1":
        return losses.denoising_loss(model, preset, losses.uniform_times)
    if stage == "stage2":
        times = {"staircase": losses.staircase_times, "uniform": losses.window_times}
        if (chosen := preset.stage2.times) not in times:
            raise ValueError(f"stage2.times: got {chosen!r}, expected one of {', '.join(times)}")
        return losses.denoising_loss(model, preset, times[chosen])
    if stage == "distill2d":
        return distill.consistency_loss(model, teacher, target, preset, distill.solver_times)
    own = preset.distill3d.own_history
    return distill.consistency_loss(model, teacher, target, preset, distill.solver_staircase, own)


# -- finished stages -------------------------------------------------------------------------------------------------


def run_id(preset: Preset, stage: str) -> str:
    """The id of a stage's run, known before it is made."""
    return Training(preset, stage).id


def recorded(preset: Preset, stage: str) -> runs.Run | None:
    """The finished run of a stage, made here or published with the repository; None if there is none."""
    try:
        return runs.get(run_id(preset, stage))
    except FileNotFoundError:
        return None


def all_recorded(preset: Preset) -> list[runs.Run]:
    """:func:`recorded` for every stage, those that there are."""
    return [run for stage in STAGES if (run := recorded(preset, stage))]


def trained(preset: Preset, stage: str, device: str | torch.device = "cpu", inputs_from: Preset | None = None) -> RAIN:
    """The networks as they stand after ``stage``, for inference; ``inputs_from`` as in :func:`train_stage`.

    Raises:
        FileNotFoundError: a stage's weights are not there, naming the run and the command that makes it.
    """
    check_stage(stage)
    model = build(preset, stage)
    own = Training(preset, stage, inputs_from).id if inputs_from else None
    known = _fill(model, inputs_from or preset, _chain(stage), own)
    parts = [part for part in _chain(stage) if not _published(preset, part)]
    if missing := sorted({name for part in parts for name in trainable(model, part)} - known):
        raise ValueError(f"{stage}: its runs hold no weights for {missing[:3]} … ({len(missing)} in all)")
    return model.to(device).eval().requires_grad_(False)


def _chain(stage: str) -> list[str]:
    """``stage`` and all it stands on, inputs first; later weights replace earlier ones."""
    before = [name for source in INPUTS[stage] for name in _chain(source)]
    return list(dict.fromkeys([*before, stage]))


def _published(preset: Preset, stage: str) -> bool:
    """Whether a stage's weights come with the networks and no run has them."""
    return stage == "autoencoder" and preset.autoencoder.kind != "small"


def _fill(model: RAIN, preset: Preset, chain: list[str], last: str | None = None) -> set[str]:
    """Load what the stages of ``chain`` trained, the last one perhaps in run ``last``; returns the names found.

    A stage whose parameters later ones all trained again is not looked for: it need not be shipped.
    """
    weights: dict[str, Tensor] = {}
    for name in reversed(chain):
        if not _published(preset, name) and not set(trainable(model, name)) <= weights.keys():
            weights = weights_of(last if last and name == chain[-1] else run_id(preset, name)) | weights
    have = model.state_dict()  # a 2D network leaves the motion modules of its chain aside
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in have}, strict=False)
    return set(weights)


# -- training --------------------------------------------------------------------------------------------------------


def train_stage(
    preset: Preset,
    stage: str,
    device: str | torch.device = "cpu",
    each: Callable[[loop.State], None] | None = None,
    inputs_from: Preset | None = None,
    warm: Path | None = None,
) -> tuple[runs.Run, list[dict]]:
    """Train a stage in its run, resuming; returns (run, history). The caller records results and finishes the run.

    Args:
        each: called after every step. inputs_from: the preset whose finished stages it starts from, if another.
        warm: a file of :mod:`rainlab.training.branches` to begin with if there is no checkpoint to resume from; its
            steps count as done, its optimiser begins anew. Noted in the run's provenance.

    Raises:
        ValueError: ``warm`` is of another stage or geometry, or has all the steps already.
    """
    loop.join_processes()
    training = Training(preset, stage, inputs_from or preset)
    run = training.open()
    if history := loop.finished_history(run):
        return run, history
    model, loss, state, clips = training.begin(training.loop, device)
    if warm and not (run.path / loop.CHECKPOINT).exists():
        tensors, note = read_tensors(warm)
        fill(state.parameters, tensors, Path(warm).name)
        note["sha256"] = digest(Path(warm))
        for name, tensor in state.ema.items():
            tensor.copy_(state.parameters[name])
        state.step = state.begun = int(note.get("step", 0))  # shipped weights of a finished run begin another at 0
        if state.step >= (steps := training.loop.steps):
            got = f"{Path(warm).name}: got {state.step} steps done"
            raise ValueError(f"{got}, expected fewer than {stage}.steps = {steps}: raise it")
        if loop.first_process():
            run.note(warm={"file": Path(warm).name} | note)
    last = None
    if stage == "autoencoder":
        last = partial(_latent_scale, model, state, clips)
    elif training.loop.blend < 1:
        last = partial(_blended, training, state.ema)
    return run, loop.fit(run, loss, state, clips, training.loop, *training.sampling, each, last)


def finished(
    preset: Preset, stage: str, device: str | torch.device = "cpu", inputs_from: Preset | None = None
) -> runs.Run:
    """A stage's run with its weights: made already, or trained now, with its curve and nothing else to tell."""
    with suppress(FileNotFoundError):  # it may be published without weights, and they are needed
        id = Training(preset, stage, inputs_from).id
        weights_file(id)
        return runs.get(id)
    run, history = train_stage(preset, stage, device, inputs_from=inputs_from)
    if not run.finished:
        record_history(run, history)
        run.finish()
    return run


def record_history(run: runs.Run, history: list[dict]) -> None:
    """Record a training's curve as rows of the metric "loss", labelled by step, to be published with the run."""
    for row in history:
        labels = {key: row[key] for key in ("step", "learning_rate", "grad_norm", "seconds")}
        run.record("loss", row["loss"], **labels)


def _latent_scale(model: RAIN, state: loop.State, clips: dataset.TrainingSet) -> dict[str, Tensor]:
    """Mean and deviation of the finished autoencoder's latents over one frame of up to 256 clips."""
    with torch.no_grad():
        for name, tensor in state.ema.items():
            state.parameters[name].copy_(tensor)
    pictures = np.stack([clips.take(i)[0][0] for i in range(min(256, clips.count))])
    vae = model.autoencoder
    vae.normalise(to_signed(torch.from_numpy(pictures)).to(vae.mean.device))
    return {"autoencoder.mean": vae.mean, "autoencoder.std": vae.std}


def _blended(training: Training, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """``stage.blend`` of the way from the weights that a distillation's target network began with to its ``average``.

    Distillation buys sharpness in few steps with wrong motion and flicker; on the way, motion comes back sooner than
    sharpness goes. The straight line between fine-tuned weights and those they began with is WiSE-FT's (Wortsman et
    al. 2022, equation 1).
    """
    begun = training.start(next(iter(average.values())).device).average
    return {name: begun[name].detach().lerp(tensor, training.loop.blend) for name, tensor in average.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train one stage of a preset, alone or as one of torchrun's processes."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.training.stages", description="Train one stage, resuming.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="override values: stage1.steps=30")
    parser.add_argument("--warm", type=Path, metavar="FILE", help="begin with these weights where nothing is to resume")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write what a training has reached so far")
    parser.add_argument("--finish", nargs=2, metavar=("STEPS", "FILE"), help="the same after a branch of falling rate")
    options = parser.parse_args(arguments)
    preset, stage = make_preset(options.preset, from_words(options.set)), options.stage
    if options.export:
        print(f"{options.export}: {stage} after {branches.export(Training(preset, stage), options.export)} steps")
        return
    if options.finish:
        steps, file = options.finish
        history = branches.finish(Training(preset, stage), int(steps), Path(file), options.device)
        done = file
    else:
        run, history = train_stage(preset, stage, options.device, warm=options.warm)
        done = run.id
    if loop.first_process():
        print(f"{done}: {history[-1]['step']} steps, loss {history[-1]['loss']:.4f}")


if __name__ == "__main__":
    main()
