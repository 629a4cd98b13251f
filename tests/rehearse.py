"""The three commands from raw videos to Table 1 at paper scale, rehearsed: `python tests/rehearse.py FOLDER`.

FOLDER becomes a copy of the project whose preset `paper` has small numbers and nothing else changed. Stand-ins take the
places of what a user has: videos and lists as UBC-Fashion has them, and files in all formats of the published weights.
Then README's commands run as they stand there, in this environment, which needs `pip install -e .[detect]`: what a real
run would trip over, but for sizes, shows in minutes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = {
    "data.height": 96, "data.width": 64, "data.fps": 12.0, "data.frames": 16, "data.test_frames": 20,
    "model.channels": (32, 32), "model.norm_groups": 8, "model.heads": 2, "model.cross_attention_dim": 24,
    "model.guidance_dim": 16, "model.guider_widths": (8, 8, 8, 16), "data.clips": 6, "data.test_clips": 8,
} | {f"{stage}.{key}": value for stage in ("stage1", "stage2", "distill2d", "distill3d")
     for key, value in {"steps": 4, "batch": 2, "warmup": 1, "save_every": 2}.items()}  # fmt: skip
LISTS = {"train": 6, "test": 8}


def write_raw(folder: Path) -> None:
    """Videos of the studio in another shape, and the two lists of addresses."""
    from rainlab.data.clips import StudioClips
    from rainlab.data.video import write_video

    for split, count in LISTS.items():
        names = [f"{split}{number}" for number in range(count)]
        frames = 24 if split == "train" else 72  # the tour shows four windows
        for name, clip in zip(names, StudioClips(split, count, frames, (120, 92)), strict=True):
            write_video(folder / f"{name}.mp4", clip.frames, clip.fps)
        (folder / f"fashion_{split}.txt").write_text("".join(f"https://x.org/{name}.mp4\n" for name in names))


def write_weights(folder: Path, preset) -> None:
    """Published files in their formats and places, of the preset's widths, with random content."""
    from test_detect import dwpose_files

    from rainlab.measure.paper_scale import write_stand_ins
    from rainlab.method.unet import UNet

    kl = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    clip = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "projection_dim": 24, "image_size": 224, "patch_size": 56}  # fmt: skip
    write_stand_ins(folder, preset, kl, clip, torch.float32)
    state = UNet(preset.model.unet(4, motion=True)).state_dict()
    moving = {key: tensor for key, tensor in state.items() if ".motion_modules." in key}
    for name in ("stable-diffusion-v1-5/unet", "animatediff"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    still = {key: tensor for key, tensor in state.items() if key not in moving}
    save_file(still, folder / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.safetensors")
    moving = {f"module.{key}": tensor for key, tensor in moving.items()}
    torch.save({"state_dict": moving}, folder / "animatediff" / "mm_sd_v15_v2.ckpt")
    dwpose_files(folder / "dwpose")


def main(folder: Path) -> None:
    """Make the copy and run the commands there; a command that fails ends it with its status."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    config = folder / "rainlab" / "config.py"
    config.write_text(
        config.read_text("utf-8") + f'\nPRESETS["paper"] = override(PRESETS["paper"], {NUMBERS!r})\n', "utf-8"
    )
    detect = folder / "rainlab" / "data" / "detect.py"  # stand-ins have other checksums
    detect.write_text(detect.read_text("utf-8").replace("pretrained.SOURCES[name].sha256", "None"), "utf-8")
    sys.path.insert(0, str(folder))
    from rainlab.config import make_preset

    write_raw(folder / "raw" / "ubc")
    write_weights(folder / "weights", make_preset("paper"))
    shutil.rmtree(folder / "weights" / "rain-v0.1")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    for command in commands():
        print(f"\n$ {command}", flush=True)
        # nothing to install: .venv is a link, what is installed there would become this copy
        command = command.replace("make ", "make -o .venv/.installed ").replace('pip install -e ".[detect]"', "true")
        subprocess.run(["bash", "-c", f"export PYTHONPATH=$PWD:$PYTHONPATH; {command}"], cwd=folder, check=True)


def commands() -> list[str]:
    """README's commands for paper scale, of which fetching is left out: there is something in its place."""
    page = (ROOT / "README.md").read_text("utf-8")
    block = page.partition("```bash\n")[2].partition("```")[0]
    return [line for line in block.splitlines() if line != "make weights"]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
