"""Frozen configurations and the presets: one code path, other numbers.

A preset is plain data. Notebooks take its name as the parameter ``preset`` and override single values by dotted name:
``make_preset("tiny", {"stage1.steps": 30, "data.clips": 48})``; an unknown name is an error, never ignored. Paths that
are not absolute begin in the project's root, wherever a notebook runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any


def added(default: Any) -> Any:
    """A field that came after runs had been published: at its default it stays out of :func:`identity`."""
    return field(default=default, metadata={"added": True})


def identity(config: Any) -> dict[str, Any]:
    """A configuration as a dict for the hash of a run: what was added since only where it is not at its default.

    So a new field changes no id, as long as its default is what was done before there was one.
    """
    new = {f.name: f.default for f in fields(config) if f.metadata.get("added")}
    return {key: value for key, value in asdict(config).items() if key not in new or value != new[key]}


def geometry(preset: Preset) -> dict[str, Any]:
    """What the speed of a preset's networks depends on, to describe a run by."""
    parts = {name: identity(getattr(preset, name)) for name in ("model", "autoencoder")}
    return {"preset": preset.name, "size": preset.data.size} | parts


@dataclass(frozen=True)
class UNetConfig:
    """Geometry of one UNet (:mod:`rainlab.method.unet`); the defaults are Stable Diffusion 1.5.

    ``heads`` is the number of attention heads at every level (the published ``attention_head_dim: 8`` means 8 heads).
    ``motion`` adds temporal attention, ``motion_length`` is the longest window its positional encoding holds,
    ``guidance_dim`` the width of the ω embedding (None: not conditioned on ω), ``out=False`` makes a reference network.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention_dim: int = 768
    norm_groups: int = 32
    heads: int = 8
    motion: bool = False
    motion_length: int = 32
    guidance_dim: int | None = None
    out: bool = True
    latent_channels: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.channels) < 2:
            raise ValueError(f"channels: got {self.channels}, expected at least two levels")
        for width in self.channels:
            for divisor, why in ((self.norm_groups, "norm_groups"), (self.heads, "heads")):
                if width % divisor:
                    raise ValueError(f"channels: got {width}, expected a multiple of {why}={divisor}")
            if self.motion and width % 32:
                raise ValueError(f"channels: got {width}, expected multiples of 32 (the motion modules' GroupNorm)")


@dataclass(frozen=True)
class DataConfig:
    """What is trained and tested on. ``source``: "studio", "faces" or "faces with gaps" (:mod:`rainlab.data.faces`),
    "scenes" (:mod:`rainlab.data.scenes`), or the path of a manifest (:mod:`rainlab.data.clips`).
    """

    source: str = "studio"
    height: int = 64
    width: int = 48
    fps: float = 12.0
    clips: int = 900  # training clips, one identity each in the studio
    frames: int = 24  # frames per training clip
    margin: int = 8  # stage 1: least distance of a target from its reference (Moore-AnimateAnyone's sample_margin)
    test_clips: int = 64  # held-out clips, their identities never seen in training
    test_frames: int = 16  # driven frames per held-out clip
    test_gap: int = 24  # frames between the reference and the first driven one: in a stream the reference is old
    facing: bool = False  # studio clips begin facing the camera; in training that frame is a reference and no target

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


@dataclass(frozen=True)
class AutoencoderConfig:
    """``kind``: "small" (trained here), "kl" (AutoencoderKL), "taesd" (diffusers) or "taesdv" (streaming decoder)."""

    kind: str = "small"
    factor: int = 4
    latent_channels: int = 4
    width: int = 48
    path: str = ""  # folder or file of published weights, for every kind but "small"


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of the trained networks. ``context``: "small" (trained encoder) or "clip" (a CLIP vision tower)."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention_dim: int = 768
    norm_groups: int = 32
    heads: int = 8
    motion_length: int = 32
    guidance_dim: int = 512
    guider_widths: tuple[int, ...] = (16, 32, 96, 256)
    context: str = "clip"
    context_path: str = ""  # folder of the CLIP vision tower, when context is "clip"
    design: str = added("reference")  # how the reference is shown (rainlab.method.designs)
    unet_path: str = added("")  # published weights that stage 1 starts from (:func:`rainlab.method.pretrained.start`)
    motion_path: str = added("")  # and stage 2's motion modules

    def unet(self, latent_channels: int, *, motion=False, guidance=False, out=True) -> UNetConfig:
        """The configuration of one of the two networks."""
        return UNetConfig(
            channels=self.channels,
            cross_attention_dim=self.cross_attention_dim,
            norm_groups=self.norm_groups,
            heads=self.heads,
            motion=motion,
            motion_length=self.motion_length,
            guidance_dim=self.guidance_dim if guidance else None,
            out=out,
            latent_channels=latent_channels,
        )


@dataclass(frozen=True)
class StageConfig:
    """One training run. Learning rate: linear warm-up, constant, cosine decay to zero over the last ``decay`` share."""

    steps: int = 1000
    batch: int = 32  # samples per optimiser step, over all processes and accumulation
    targets: int = 1  # frames trained per reference in stage 1 and 2D distillation
    learning_rate: float = 1e-5
    warmup: int = 100
    decay: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999  # of the weights, 0: none; in distillation this average is the target network (LCM: 0.95)
    accumulate: int = 1
    checkpointing: bool = False
    save_every: int = 250
    seed: int = 0
    optimizer: str = added("adamw")  # "adamw8bit", "muon": that on matrices and AdamW on the rest (training/optim.py)
    matrix_rate: float = added(0.01)  # Muon's learning rate at the height of the schedule
    momentum: float = added(0.95)  # Muon's
    times: str = added("staircase")  # of stage 2: RAIN's; or "uniform", one level for a window: AnimateAnyone's
    start: str = added("")  # a preset of the same geometry whose weights after this stage it begins with
    blend: float = added(1.0)  # of a distillation: share of what it learned that is kept (WiSE-FT, arXiv:2109.01903)
    own_history: float = added(0.0)  # of 3D distillation: share of steps that go on from what the student itself made
    bf16: bool = added(False)  # networks in bf16 on a processor that has it; GPUs always compute so


@dataclass(frozen=True)
class LossConfig:
    """Numbers inside the losses."""

    noise_offset: float = 0.05  # Moore-AnimateAnyone; the paper is silent
    condition_dropout: float = 0.1  # Moore-AnimateAnyone
    snr_gamma: float = 5.0  # Moore-AnimateAnyone
    huber_c: float = 0.001  # section 5
    guidance_range: tuple[float, float] = (1.0, 4.0)  # ω drawn per sample; covers section 4.3's 2.0-3.5
    embedding_scale: float = 1.0  # of the ω projection's first values (rain.start_guidance); 0: zeros


@dataclass(frozen=True)
class StreamConfig:
    """K, p, N, ω of the running stream, and who sees whom over time (:func:`rainlab.method.unet.temporal_mask`)."""

    window: int = 16
    groups: int = 4
    steps_per_group: int = 1
    guidance: float = 2.0
    causal: bool = False  # no frame sees a later one: the ablation of section 5.4
    cross_level: bool = added(True)  # frames see those at other noise levels: RAIN's idea; False takes it away
    sink: bool = added(False)  # the first group that came out stays in sight behind the window (Rolling Forcing)

    def __post_init__(self) -> None:
        if self.sink and (self.causal or not self.cross_level):
            raise ValueError("sink: got it with a mask (causal, or no cross_level), expected one of them at a time")

    @property
    def group_size(self) -> int:
        """K/p, the frames that come out together."""
        return self.window // self.groups

    @property
    def sink_frames(self) -> int:
        """How many clean frames stand behind the window."""
        return self.group_size if self.sink else 0


@dataclass(frozen=True)
class Preset:
    """Everything a notebook needs to know; :func:`make_preset` makes one."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    train_autoencoder: StageConfig = field(default_factory=StageConfig)
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=StageConfig)
    distill2d: StageConfig = field(default_factory=StageConfig)
    distill3d: StageConfig = field(default_factory=StageConfig)

    def dict(self) -> dict[str, Any]:
        """Plain nested dict (JSON-able)."""
        return asdict(self)


_TINY_MODEL = ModelConfig(
    channels=(32, 64),
    cross_attention_dim=64,
    norm_groups=8,
    heads=2,
    guidance_dim=64,
    guider_widths=(8, 16, 32, 64),
    context="small",
)
_SMALL_MODEL = replace(_TINY_MODEL, channels=(64, 128), cross_attention_dim=128)

_MUON = StageConfig(optimizer="muon", bf16=True)
_AS_SMALL = replace(_MUON, learning_rate=1e-3, decay=0.5, start="small")  # same painter, other pictures
_QUICK = StageConfig(optimizer="muon", decay=0.5)

# UBC-Fashion (section 5.1); faces and style transfer differ in steps and ω (sections 5.2, 5.3, PAPER_TASKS)
_PAPER = Preset(
    name="paper",
    data=DataConfig(source="data/ubc_fashion/manifest.jsonl", height=768, width=512, fps=30.0, clips=500, frames=16,
                    margin=0, test_clips=100, test_frames=300, test_gap=0),
    autoencoder=AutoencoderConfig(kind="kl", factor=8, latent_channels=4, path="weights/sd-vae-ft-mse"),
    model=ModelConfig(context_path="weights/sd-image-variations-diffusers/image_encoder",
                      unet_path="weights/stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors",
                      motion_path="weights/animatediff/mm_sd_v15_v2.ckpt"),
    loss=LossConfig(embedding_scale=0.0),  # LCM starts the ω projection at zero
    train_autoencoder=StageConfig(steps=0),
    stage1=StageConfig(steps=30_000, batch=32, checkpointing=True),
    stage2=StageConfig(steps=20_000, batch=8, checkpointing=True),
    distill2d=StageConfig(steps=1200, batch=8, ema=0.95, checkpointing=True),
    distill3d=StageConfig(steps=1200, batch=8, ema=0.95, checkpointing=True),
)  # fmt: skip

PAPER_TASKS: dict[str, dict[str, Any]] = {
    "fashion": {"stage1.steps": 30_000, "stage2.steps": 20_000, "stream.guidance": 2.0},
    "face": {"stage1.steps": 60_000, "stage2.steps": 30_000, "stream.guidance": 2.5, "data.height": 512},
    "style": {"stage1.steps": 60_000, "stage2.steps": 40_000, "stream.guidance": 3.5, "data.height": 512},
}
"""Section 5: what differs between the three tasks, as overrides of the ``paper`` preset."""

_FACE = Preset(
    name="face",
    data=DataConfig(
        source="faces", height=128, width=128, clips=1500, frames=17, margin=6, test_frames=48, facing=True
    ),
    autoencoder=AutoencoderConfig(factor=8, latent_channels=8, width=40),
    model=_SMALL_MODEL,
    loss=LossConfig(condition_dropout=0.03),
    stream=StreamConfig(guidance=2.5),  # section 5.2
    train_autoencoder=replace(_AS_SMALL, steps=1500, batch=16, ema=0.99, save_every=200),
    stage1=replace(_AS_SMALL, steps=1500, batch=8, targets=4, ema=0.995, save_every=200),
    stage2=replace(_AS_SMALL, steps=600, batch=2, learning_rate=5e-4, ema=0.99),
    distill2d=StageConfig(steps=200, batch=8, targets=4, learning_rate=1e-4, decay=0.5, ema=0.95, save_every=50),
    distill3d=StageConfig(steps=200, batch=2, learning_rate=3e-5, decay=0.5, ema=0.95, blend=0.6, save_every=50),
)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        name="tiny",
        data=DataConfig(frames=33, test_frames=48, facing=True),  # one to look at, and the longest window of Table 3
        autoencoder=AutoencoderConfig(factor=8, latent_channels=16, width=32),
        model=_TINY_MODEL,
        train_autoencoder=replace(_QUICK, steps=700, batch=8, learning_rate=2e-3, warmup=30, ema=0.99),
        stage1=replace(_QUICK, steps=1000, batch=8, targets=4, learning_rate=2e-3, warmup=50, ema=0.99),
        stage2=replace(_QUICK, steps=400, batch=1, learning_rate=1e-3, warmup=20, ema=0.98),
        distill2d=StageConfig(steps=100, batch=4, targets=4, learning_rate=3e-4, warmup=10, decay=0.5, ema=0.95),
        distill3d=StageConfig(steps=100, batch=1, learning_rate=3e-4, warmup=10, decay=0.5, ema=0.95),
    ),
    "small": Preset(
        name="small",
        data=DataConfig(height=128, width=96, clips=3000, frames=17, margin=6, test_frames=48, facing=True),
        autoencoder=AutoencoderConfig(factor=8, latent_channels=8, width=40),
        model=_SMALL_MODEL,
        loss=LossConfig(condition_dropout=0.03),  # enough for a null to guide by; more costs quality
        train_autoencoder=replace(_MUON, steps=5000, batch=16, learning_rate=2e-3, decay=0.5, ema=0.99, save_every=200),
        stage1=replace(_MUON, steps=60_000, batch=8, targets=4, learning_rate=2e-3, decay=0.1, save_every=250),
        stage2=replace(_MUON, steps=4000, batch=2, learning_rate=1e-3, decay=0.5),
        distill2d=StageConfig(steps=2000, batch=8, targets=4, learning_rate=1e-4, decay=0.5, ema=0.95),
        distill3d=StageConfig(steps=300, batch=2, learning_rate=3e-5, decay=0.5, ema=0.95, blend=0.6),  # more flickers
    ),
    "face": _FACE,
    "street": replace(
        _FACE,
        name="street",
        data=replace(_FACE.data, source="scenes", height=96, width=96),
        stream=StreamConfig(guidance=3.5),  # section 5.3
        distill2d=replace(_FACE.distill2d, steps=150),
        distill3d=replace(_FACE.distill3d, steps=150),
    ),
    "paper": _PAPER,
}


def make_preset(name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """The preset ``name`` with single values replaced by dotted name, for example ``{"stage1.steps": 30}``.

    Raises:
        ValueError: unknown preset or unknown key, naming the ones there are.
        TypeError: a value of another type than the one it replaces.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: got {name!r}, expected one of {sorted(PRESETS)}")
    return override(PRESETS[name], overrides or {})


def from_words(words: Iterable[str]) -> dict[str, Any]:
    """Overrides as a command line has them: ``["stage1.steps=30"]`` -> ``{"stage1.steps": 30}``; values are JSON."""
    return {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}


def override(config: Preset, overrides: Mapping[str, Any]) -> Preset:
    """``config`` with single values replaced; errors as in :func:`make_preset`."""
    for key, value in overrides.items():
        config = _replace(config, key.split("."), value, key)
    return config


def _replace(config: Any, parts: list[str], value: Any, key: str) -> Any:
    names = [f.name for f in fields(config)]
    if parts[0] not in names:
        raise ValueError(f"override {key!r}: {parts[0]!r} is unknown, expected one of {names}")
    old = getattr(config, parts[0])
    if len(parts) > 1 and is_dataclass(old):
        return replace(config, **{parts[0]: _replace(old, parts[1:], value, key)})
    if len(parts) > 1 or is_dataclass(old):
        raise ValueError(f"override {key!r} does not name a single value")
    if isinstance(old, tuple):
        value = tuple(value)
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif type(value) is not type(old):
        raise TypeError(f"override {key!r}: got {value!r}, expected a {type(old).__name__} like {old!r}")
    return replace(config, **{parts[0]: value})
