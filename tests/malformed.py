"""A seeded fuzzer: good files of every kind that is read, damaged, through their readers in a process that may die.

`python tests/malformed.py 1000` runs so many and prints what became of them.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TextIO

LIMIT = 10.0  # seconds that one file may take
CLEAR = (ValueError, TypeError, FileNotFoundError)  # what readers say clearly; VideoError is a ValueError


def mutate(good: bytes, rng: random.Random) -> bytes:
    """A damaged copy: cut short, bits flipped, pieces overwritten, taken out, doubled, swapped, mostly at the head."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 512))
        length = min(rng.choice((1, 4, 8, 64, 512)), len(data) - at)
        how = rng.randrange(8)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at : at + length] = rng.randbytes(length)
        elif how == 3:
            data[at : at + length] = bytes(length)
        elif how == 4:
            data[at : at + length] = b"\xff" * length
        elif how == 5:
            del data[at : at + length]
        elif how == 6:
            data[at:at] = data[at : at + length]
        else:
            other = rng.randrange(len(data))
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    return bytes(data)


def write_good(folder: Path) -> None:
    """One good file of every kind; the pickled ones hold code that must never run."""
    import micro
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from rainlab.data.clips import write_studio
    from rainlab.data.video import write_video
    from rainlab.method.checkpoint import save_model

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'executed'}",)

    rng = np.random.default_rng(0)
    write_studio(folder / "set", "train", 1, 4, (32, 24))
    write_video(folder / "clip.mp4", rng.integers(0, 256, (12, 32, 24, 3), np.uint8))
    picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.gif"):
        picture.save(folder / name)
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.float16)}
    save_file(tensors, folder / "weights.safetensors")
    save_model(micro.model(), folder / "model.safetensors")
    torch.save(tensors, folder / "weights.pth")
    torch.save({"state_dict": tensors, "callback": Runs()}, folder / "code.pth")


def read(kind: str, path: Path) -> None:
    """Read a file the way the package does."""
    from rainlab.data.clips import ManifestClips
    from rainlab.data.video import probe, read_picture, read_video
    from rainlab.method.checkpoint import load_model, read_tensors
    from rainlab.method.pretrained import mapped

    if kind.endswith(".mp4"):
        probe(path)
        read_video(path)
    elif kind == "set/manifest.jsonl":
        for clip in ManifestClips(path, "train", (32, 24), 2):
            clip.frames.mean()
    elif kind.endswith(".safetensors"):
        load_model(path) if kind.startswith("model") else read_tensors(path)
    elif kind.endswith(".pth"):
        mapped(path)
    else:
        read_picture(path)


KINDS = ("clip.mp4", "set/manifest.jsonl", "picture.png", "picture.jpg", "picture.webp", "picture.gif",
         "weights.safetensors", "model.safetensors", "weights.pth", "code.pth")  # fmt: skip


def case(folder: Path, number: int, seed: int) -> tuple[str, Path]:
    """Write the damaged file of a number; returns (kind, path). The same number gives the same bytes."""
    rng = random.Random(f"{seed}, {number}")
    kind = KINDS[number % len(KINDS)]
    good = folder / kind
    path = good.with_name(f"{number}{good.suffix}")
    path.write_bytes(mutate(good.read_bytes(), rng))
    return kind, path


def work(folder: Path, first: int, last: int, seed: int) -> None:
    """Read the files of numbers first … last-1, a line of JSON for each: before it begins, and what became of it."""
    for number in range(first, last):
        kind, path = case(folder, number, seed)
        print(json.dumps({"number": number, "kind": kind}), flush=True)
        try:
            read(kind, path)
            said = "read"
        except CLEAR as error:
            said = (
                "refused"
                if path.name in str(error) or str(path) in str(error) or ": got " in str(error)
                else str(error)
            )
        except BaseException:
            said = traceback.format_exc()
        print(json.dumps({"number": number, "said": said}), flush=True)
        path.unlink()


def fuzz(count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Read ``count`` damaged files; (outcomes by kind, faults: crashes, hangs, unclear errors, code that ran)."""
    outcomes, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), 0
        write_good(folder)
        while first < count:
            command = [sys.executable, __file__, "--work", str(folder), str(first), str(count), str(seed)]
            log = folder / "said"
            with (
                log.open("w") as said,
                log.open() as heard,
                subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL) as process,
            ):
                first, faults = _watch(process, heard, outcomes, first)
            wrong += faults
        if (folder / "executed").exists():
            wrong.append("code in a file was executed")
    return outcomes, wrong


def _watch(process: subprocess.Popen, heard: TextIO, outcomes: Counter, number: int) -> tuple[int, list[str]]:
    """Follow a worker until it has read all or a file has killed it; returns (the next number, faults)."""
    begun, kind, wrong, began, pending = number, "", [], 0.0, ""
    while True:
        ended = process.poll() is not None
        *lines, pending = (pending + heard.read()).split("\n")
        for line in map(json.loads, lines):
            number = line["number"]
            if "kind" in line:
                kind, began = line["kind"], time.monotonic()
                continue
            said = line["said"]
            outcomes[kind, said if said in ("read", "refused") else "unclear"] += 1
            if said not in ("read", "refused"):
                wrong.append(f"{kind} {number}: {said}")
            number, kind = number + 1, ""
        late = LIMIT + 60 * (number == begun)  # the first waits for imports
        if kind and time.monotonic() - began > late:
            process.kill()
            outcomes[kind, "hung"] += 1
            return number + 1, [*wrong, f"{kind} {number}: took more than {LIMIT:g} s"]
        if ended and kind:
            outcomes[kind, "crashed"] += 1
            return number + 1, [*wrong, f"{kind} {number}: the process died, status {process.returncode}"]
        if ended and number == begun:  # before it began: an error of the fuzzer itself
            raise RuntimeError(f"the worker ended with status {process.returncode} before its first file")
        if ended:
            return number, wrong
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
    else:
        found, faults = fuzz(int(sys.argv[1]), *map(int, sys.argv[2:3]))
        print(*(f"{kind:22} {outcome:8} {number}" for (kind, outcome), number in sorted(found.items())), sep="\n")
        print(*faults, f"{sum(found.values())} files, {len(faults)} faults", sep="\n")
