"""The four stages and the autoencoder as runs: what each reads, what it starts from, where its weights are.

    autoencoder ─▶ stage1 ─▶ stage2 ──┐
                     └────▶ distill2d ┴▶ distill3d

`torchrun --nproc_per_node 8 -m rainlab.stages stage1 --preset paper` trains a stage on several processes; the notebook
then finds the training done, evaluates and records it. What an unfinished training has reached is written as a file of
averaged weights by `--export FILE`, or by `--finish STEPS FILE` after a branch of so many more steps along which the
rate falls to zero; `--warm FILE` begins a training with such a file where there is nothing to resume.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rainlab import checkpoint, data, distill, losses, runs, train
from rainlab.config import PRESETS, Preset, StageConfig, identity
from rainlab.config import preset as make_preset
from rainlab.model import RAIN, STAGES, start_guidance, to_signed

VERSIONS = {"autoencoder": 2, "stage1": 2, "stage2": 2, "distill2d": 2, "distill3d": 2}  # raised when results change
INPUTS = {
    "autoencoder": (),
    "stage1": ("autoencoder",),
    "stage2": ("stage1",),
    "distill2d": ("stage1",),
    "distill3d": ("stage2", "distill2d"),
}
WINDOWED = ("stage2", "distill3d")


def stage_config(preset: Preset, stage: str) -> StageConfig:
    """The loop's numbers of a stage."""
    return preset.train_autoencoder if stage == "autoencoder" else getattr(preset, stage)


def describe(preset: Preset, stage: str, inputs_from: Preset | None = None) -> tuple[dict, dict[str, str]]:
    """(config, inputs) that determine a stage's result, for :func:`rainlab.runs.open_run`.

    ``inputs_from``: the preset whose finished stages this one starts from, if that is another (a shorter trial).
    """
    if stage not in STAGES:
        raise ValueError(f"stage: got {stage!r}, expected one of {STAGES}")
    loop = identity(stage_config(preset, stage))
    loop.pop("save_every")  # how often it is saved does not change the result
    config = {"preset": preset.name, "train": loop, "autoencoder": identity(preset.autoencoder)}
    config |= {"data": data.clips_of(preset.data, "train").fingerprint(), "margin": preset.data.margin}
    if stage != "autoencoder":
        config |= {"model": identity(preset.model), "loss": identity(preset.loss)}
    if stage in WINDOWED:
        stream = preset.stream
        config["stream"] = {"window": stream.window, "groups": stream.groups, "causal": stream.causal}
    return config, {name: run_id(inputs_from or preset, name) for name in INPUTS[stage]}


def run_id(preset: Preset, stage: str) -> str:
    """The id of a stage's run, known before it is made."""
    config, inputs = describe(preset, stage)
    return runs.run_id(stage, config, VERSIONS[stage], inputs)


def open_stage(preset: Preset, stage: str, inputs_from: Preset | None = None) -> runs.Run:
    """The run of a stage in ``runs/``, finished or not."""
    config, inputs = describe(preset, stage, inputs_from)
    return runs.open_run(stage, config, VERSIONS[stage], inputs)


def recorded(preset: Preset, stage: str) -> runs.Run | None:
    """The finished run of a stage, made here or published with the repository; None if there is none."""
    try:
        return runs.load(run_id(preset, stage))
    except FileNotFoundError:
        return None


def load_model(preset: Preset, stage: str, device: str | torch.device = "cpu") -> RAIN:
    """The networks as they stand after ``stage``, for inference.

    Raises:
        FileNotFoundError: a stage's weights are not there, naming the run and the command that makes it.
    """
    model = RAIN.build(preset, motion=stage in WINDOWED, guidance=stage.startswith("distill"))
    model, known = _fill(model, preset, _chain(stage))
    if missing := sorted({name for part in _chain(stage) for name in model.trainable(part)} - known):
        raise ValueError(f"{stage}: its runs hold no weights for {missing[:3]} … ({len(missing)} in all)")
    return model.to(device).eval().requires_grad_(False)


def _chain(stage: str) -> list[str]:
    """``stage`` and all it stands on, inputs first; later weights replace earlier ones."""
    before = [name for source in INPUTS[stage] for name in _chain(source)]
    return list(dict.fromkeys([*before, stage]))


def _fill(model: RAIN, preset: Preset, chain: list[str]) -> tuple[RAIN, set[str]]:
    """Load what the stages of ``chain`` trained; returns the model and the names they had weights for.

    A stage whose parameters later ones all trained again is not looked for: it need not be shipped.
    """
    weights: dict[str, Tensor] = {}
    for name in reversed(chain):
        published = name == "autoencoder" and preset.autoencoder.kind != "small"
        if not published and not set(model.trainable(name)) <= weights.keys():
            weights = checkpoint.load_weights(run_id(preset, name)) | weights
    have = model.state_dict()  # a 2D network leaves the motion modules of its chain aside
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in have}, strict=False)
    return model, set(weights)


def fresh(
    preset: Preset, stage: str, inputs_from: Preset | None = None, device: str | torch.device = "cpu"
) -> tuple[RAIN, losses.Loss, dict[str, Tensor] | None]:
    """(model, loss, moving average to use or None) as the stage starts; teacher and target stand on ``device``, too."""
    source, guidance = inputs_from or preset, stage.startswith("distill")
    torch.manual_seed(stage_config(preset, stage).seed)
    model = RAIN.build(preset, motion=stage in WINDOWED, guidance=guidance)
    if stage == "autoencoder":
        return model, losses.autoencoder_loss(model), None
    _fill(model, source, _chain(stage)[:-1])
    if not guidance:
        times = losses.staircase_times if stage == "stage2" else losses.uniform_times
        return model, losses.denoising_loss(model, preset, times), None
    # 3D: the student starts from the 2D consistency model, teacher and target from the original 2D network (AnimateLCM)
    teacher = load_model(source, "stage2" if stage == "distill3d" else "stage1", device).denoising_unet
    target = deepcopy(model.to(device).denoising_unet)
    if stage == "distill3d":
        target.load_state_dict(teacher.state_dict(), strict=False)
        start_guidance(target, 0.0)  # the original network knows no ω
    times = distill.solver_staircase if stage == "distill3d" else distill.solver_times
    loss = distill.consistency_loss(model, teacher, target, preset, times)
    return model, loss, {f"denoising_unet.{name}": p for name, p in target.named_parameters()}


def training_set(
    preset: Preset,
    stage: str,
    device: str | torch.device = "cpu",
    inputs_from: Preset | None = None,
    split: str = "train",
) -> data.TrainingSet:
    """The clips of a split as a stage needs them: with latents for all but the autoencoder."""
    clips, run = data.cached(data.clips_of(preset.data, split), preset.data.margin, preset.data.facing)
    if stage == "autoencoder":
        return clips
    source = inputs_from or preset
    autoencoder = load_model(source, "autoencoder", device).autoencoder
    with run.lock(), train.alone():  # other processes wait and find them made
        return clips.encode(autoencoder, run.path / f"latents-{run_id(source, 'autoencoder')}.npy")


def train_stage(
    preset: Preset,
    stage: str,
    device: str | torch.device = "cpu",
    each: Callable[[train.State], None] | None = None,
    inputs_from: Preset | None = None,
    warm: Path | None = None,
) -> tuple[runs.Run, list[dict]]:
    """Train a stage in its run, resuming; returns (run, history). The caller records results and finishes the run.

    ``warm``: a file of weights to begin with if there is no checkpoint to resume from; noted in the run's provenance.
    """
    train.join_processes()
    run, cfg = open_stage(preset, stage, inputs_from), stage_config(preset, stage)
    if history := train.finished_history(run):
        return run, history
    model, loss, state, clips = _begin(preset, stage, cfg, device, inputs_from)
    if warm and not (run.path / train.CHECKPOINT).exists():
        note = checkpoint.fill(state.parameters, warm) | {"sha256": checkpoint.digest(Path(warm))}
        for name, tensor in state.ema.items():
            tensor.copy_(state.parameters[name])
        if train.first_process():
            run.note(warm={"file": Path(warm).name} | note)
    frames = preset.stream.window if stage in WINDOWED else cfg.targets
    extra = (lambda: _latent_scale(model, state, clips)) if stage == "autoencoder" else None
    return run, train.fit(run, loss, state, clips, cfg, frames, stage in WINDOWED, each, extra)


def _begin(
    preset: Preset, stage: str, cfg: StageConfig, device: str | torch.device, inputs_from: Preset | None = None
) -> tuple[RAIN, losses.Loss, train.State, data.TrainingSet]:
    clips = training_set(preset, stage, device, inputs_from)
    model, loss, ema = fresh(preset, stage, inputs_from, device)
    model.to(device)
    model.denoising_unet.checkpointing = model.reference_unet.checkpointing = cfg.checkpointing
    return model, loss, train.start(model, model.trainable(stage), cfg, ema), clips


def export(preset: Preset, stage: str, path: Path) -> int:
    """Write the averaged weights of the newest checkpoint of an unfinished training as fp16; returns its step.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    file = open_stage(preset, stage).path / train.CHECKPOINT
    if not file.exists():
        raise FileNotFoundError(f"{stage} of preset {preset.name}: got no {file}, expected a training under way")
    step, ema = train.averaged(file)
    checkpoint.write(ema, path, {"stage": stage, "step": str(step), "preset": preset.name})
    return step


def finish_branch(preset: Preset, stage: str, steps: int, path: Path, device: str | torch.device = "cpu") -> list[dict]:
    """Train ``steps`` more from the newest checkpoint, the rate falling to zero, and write that as :func:`export` does.

    The training itself is left as it is and can go on: its rate stays high, which learns faster and ends worse.
    Returns the branch's history.
    """
    file = open_stage(preset, stage).path / train.CHECKPOINT
    done, _ = train.averaged(file)
    ema = min(stage_config(preset, stage).ema, 1 - 10 / steps)  # an average no longer than a tenth of the branch
    cfg = replace(stage_config(preset, stage), steps=done + steps, decay=steps / (done + steps), ema=ema)
    train.join_processes()
    _, loss, state, clips = _begin(preset, stage, cfg, device)
    train.load_state(state, file)
    frames, window = preset.stream.window if stage in WINDOWED else cfg.targets, stage in WINDOWED
    history = []
    for now in train.train(loss, state, clips, cfg, frames, window):
        history.append({"step": now.step, "loss": now.loss, "learning_rate": now.learning_rate})
    if train.first_process():
        checkpoint.write(
            state.ema, path, {"stage": stage, "step": str(state.step), "preset": preset.name, "decayed": str(steps)}
        )
    return history


def record_history(run: runs.Run, history: list[dict]) -> None:
    """Record a training's curve as rows of the metric "loss", labelled by step, to be published with the run."""
    for row in history:
        labels = {key: row[key] for key in ("step", "learning_rate", "grad_norm", "seconds")}
        run.record("loss", row["loss"], **labels)


def _latent_scale(model: RAIN, state: train.State, clips: data.TrainingSet) -> dict[str, Tensor]:
    """Mean and deviation of the finished autoencoder's latents over one frame of up to 256 clips."""
    with torch.no_grad():
        for name, tensor in state.ema.items():
            state.parameters[name].copy_(tensor)
    pictures = np.stack([clips.take(i)[0][0] for i in range(min(256, clips.count))])
    vae = model.autoencoder
    vae.normalise(to_signed(torch.from_numpy(pictures)).to(vae.mean.device))
    return {"autoencoder.mean": vae.mean, "autoencoder.std": vae.std}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train one stage of a preset, alone or as one of torchrun's processes."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.stages", description="Train one stage, resuming.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="override values: stage1.steps=30")
    parser.add_argument("--warm", type=Path, metavar="FILE", help="begin with these weights where nothing is to resume")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write what a training has reached so far")
    parser.add_argument("--finish", nargs=2, metavar=("STEPS", "FILE"), help="the same after a branch of falling rate")
    options = parser.parse_args(arguments)
    changes = {key: json.loads(value) for key, _, value in (word.partition("=") for word in options.set)}
    preset, stage = make_preset(options.preset, changes), options.stage
    if options.export:
        print(f"{options.export}: {stage} after {export(preset, stage, options.export)} steps")
        return
    if options.finish:
        history = finish_branch(preset, stage, int(options.finish[0]), Path(options.finish[1]), options.device)
        done = options.finish[1]
    else:
        run, history = train_stage(preset, stage, options.device, warm=options.warm)
        done = run.id
    if train.first_process():
        print(f"{done}: {history[-1]['step']} steps, loss {history[-1]['loss']:.4f}")


if __name__ == "__main__":
    main()
