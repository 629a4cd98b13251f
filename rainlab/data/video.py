"""Video files: probe, read and write h264 with PyAV, which is imported only where it is used.

Reading is exact to the frame and seeks: 16 frames of an hour cost one scan of the packets, remembered, and the decoding
from the key frame before them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from rainlab.files import atomic_path


class VideoError(ValueError):
    """A video that is missing, corrupt, empty, too short or wrongly sized: names file, got, expected, what to do."""

    def __init__(self, path: str | Path, got: str, expected: str, fix: str):
        super().__init__(path, got, expected, fix)  # all four, so that the error can be pickled by a worker process
        self.path, self.got, self.expected, self.fix = path, got, expected, fix

    def __str__(self) -> str:
        return f"{self.path}: got {self.got}, expected {self.expected}; {self.fix}"


@dataclass(frozen=True)
class _Index:
    """Time stamps of all frames in order of display, (pts, dts) of the key frames, and the picture format."""

    pts: list[int]
    keys: list[tuple[int, int]]
    height: int
    width: int
    fps: float


@contextmanager
def _opened(path: str, strict: bool = False):
    """Container and first video stream of a file; libav's errors come out as VideoError.

    strict: a damaged picture is an error, too, where libav would patch it up.
    """
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise VideoError(path, "no video stream", "a video", "give another file")
            stream = container.streams.video[0]
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except av.FFmpegError as error:
        got = f"unreadable data ({error.strerror})"
        raise VideoError(path, got, "a whole video", "copy or cut it again, as mp4") from error


@lru_cache(maxsize=4096)
def _scan(path: str, modified: int, size: int) -> _Index:
    """Index by walking the packets without decoding (0.3 s an hour): exact for variable rates and trimmed files too.

    modified and size are part of the cache's key: a file that was written again is scanned again.
    """
    pts, keys, packets, torn = [], [], 0, False
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size == 0:  # the end marker
                continue
            if packet.pts is None:
                raise VideoError(path, "frames without time stamps", "mp4, mkv or webm", "put it into an mp4")
            packets, torn = packets + 1, torn or packet.is_corrupt
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:  # decoded for its neighbours' sake but trimmed away
                pts.append(packet.pts)
        announced = max(len(stream.index_entries), packets)  # mp4 lists every frame in its header, mkv does not
        if torn or packets < announced:
            raise VideoError(path, f"data for {packets - torn} frames", f"{announced} as announced", "copy it again")
        rate = stream.average_rate or stream.guessed_rate
        if not (pts and rate and stream.height and stream.width):
            raise VideoError(path, f"{len(pts)} frames", "at least 1, of known size and rate", "cut it again")
        return _Index(sorted(pts), sorted(keys), stream.height, stream.width, float(rate))


def _index(path: str | Path) -> _Index:
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(path, "no such file", "a video", "correct the path, or make the file again") from error
    if status.st_size == 0:
        raise VideoError(path, "an empty file", "a video", "make the file again")
    return _scan(str(path), status.st_mtime_ns, status.st_size)


def probe(path: str | Path) -> dict:
    """{frames, height, width, fps} of a video, frames counted; VideoError if it is missing, torn or no video."""
    index = _index(path)
    return {"frames": len(index.pts), "height": index.height, "width": index.width, "fps": index.fps}


def crop_to(got: tuple[int, int], size: tuple[int, int], fit: str, path: str | Path) -> tuple[slice, slice]:
    """Rows and columns of a `got` = (height, width) picture that are to be resized to `size`.

    fit="error": all of it, and a VideoError if its shape is more than 2 % off. fit="crop": its largest centred part of
    that shape.
    """
    (height, width), (rows, columns) = got, size
    if fit not in ("error", "crop"):
        raise ValueError(f"fit: got {fit!r}, expected 'error' or 'crop'; choose one")
    if fit == "error":
        if abs(width * rows / (height * columns) - 1) > 0.02:
            want = f"the shape of {rows}×{columns} within 2 %"
            raise VideoError(path, f"{height}×{width} pixels", want, "choose another size, or crop with fit='crop'")
        return slice(None), slice(None)
    tall, wide = min(height, round(width * rows / columns)), min(width, round(height * columns / rows))
    top, left = (height - tall) // 2, (width - wide) // 2
    return slice(top, top + tall), slice(left, left + wide)


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (h, w, 3) at `size` (height, width): bilinear, with antialiasing."""
    if picture.shape[:2] == tuple(size):
        return picture
    folded = torch.tensor(picture).permute(2, 0, 1)[None]
    return interpolate(folded, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _exact():
    """libswscale's most exact conversion between YUV and RGB, with the same result on every processor."""
    from av.video.reformatter import Interpolation as flags

    return flags.BICUBIC | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP | flags.ACCURATE_RND | flags.BITEXACT


def iter_video(
    path: str | Path, start: int = 0, stop: int | None = None, size: tuple[int, int] | None = None, fit: str = "error"
) -> Iterator[np.ndarray]:
    """Yield frames start … stop-1 (to the end if None) as uint8 (h, w, 3) RGB, holding one at a time.

    `size` (height, width) resizes, bilinear with antialiasing (torch); `fit` as in `crop_to`. VideoError for a bad file
    (reading from frame 0 is the stricter test) or one without these frames, ValueError for a range without sense.
    """
    index = _index(path)
    total = len(index.pts)
    stop = total if stop is None else stop
    if start >= total or stop > total:
        expected = f"at least {max(start + 1, stop)}"
        raise VideoError(path, f"{total} frames", expected, "ask for fewer frames, or give a longer video")
    if not 0 <= start < stop:
        raise ValueError(f"frame range: got {start} … {stop}, expected 0 <= start < stop; correct it")
    size = size or (index.height, index.width)
    rows, columns = crop_to((index.height, index.width), size, fit, path)
    wanted = index.pts[start:stop]
    key, key_dts = max((key for key in index.keys if key[0] <= wanted[0]), default=(wanted[0], wanted[0]))
    found = 0
    # Behind a jump, libav takes the missing frames before the key frame for damage: only reading from 0 can be strict.
    with _opened(str(path), strict=start == 0) as (container, stream):
        if start:
            container.seek(key if "mp4" in container.format.name else key_dts, stream=stream)  # libav's mp4 wants pts
        for frame in container.decode(stream):
            if frame.pts < wanted[0]:
                continue
            if frame.pts != wanted[found]:
                break
            picture = frame.to_ndarray(format="rgb24", interpolation=_exact())
            yield resized(picture[rows, columns], size)
            found += 1
            if found == len(wanted):
                return
    raise VideoError(path, f"no frame {start + found}", f"frames up to {stop - 1}", "copy or cut it again, as mp4")


def read_video(
    path: str | Path, start: int = 0, stop: int | None = None, size: tuple[int, int] | None = None, fit: str = "error"
) -> tuple[np.ndarray, float]:
    """Frames uint8 (f, h, w, 3) RGB and frames per second; arguments and errors as in `iter_video`."""
    return np.stack(list(iter_video(path, start, stop, size, fit))), probe(path)["fps"]


def read_picture(path: str | Path | BytesIO, size: tuple[int, int] | None = None, fit: str = "error") -> np.ndarray:
    """A picture file, or its bytes, as uint8 (h, w, 3) RGB, upright, transparent parts white.

    `size`, `fit` and errors as in `iter_video`.
    """
    from PIL import Image

    name, upright = _upright(path)
    whole = Image.new("RGBA", upright.size, "white")
    whole.alpha_composite(upright)
    picture = np.asarray(whole.convert("RGB"))
    return picture if size is None else resized(picture[crop_to(picture.shape[:2], size, fit, name)], size)


def read_rgba(path: str | Path | BytesIO) -> np.ndarray:
    """A picture file, or its bytes, as uint8 (h, w, 4) RGB and alpha, upright; errors as in `read_picture`."""
    return np.array(_upright(path)[1])


def _upright(path: str | Path | BytesIO) -> tuple[str, Any]:
    """(Its name, the picture)."""
    from PIL import Image, ImageOps

    name = "the picture" if isinstance(path, BytesIO) else str(path)
    try:
        with Image.open(path) as file:
            return name, ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(name, str(error), "a picture file", "correct the path, or give another file") from error


def write_video(path: str | Path, frames: np.ndarray, fps: float = 12.0, lossless: bool = False, crf: int = 18) -> None:
    """Write frames uint8 (f, h, w, 3) RGB as h264 in mp4, atomically; on one machine the same frames give the same
    bytes (x264 has other code for other processors).

    yuv420p, which every player shows; `crf` 0 … 51, lower is better. lossless=True keeps every bit (RGB h264, for masks
    and condition pictures; browsers don't play it). TypeError or ValueError for other arrays and, unless lossless, for
    odd heights and widths.
    """
    import av

    frames = np.asarray(frames)
    if frames.dtype != np.uint8:
        raise TypeError(f"frames: got {frames.dtype}, expected uint8; scale to 0 … 255 and convert")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames: got shape {frames.shape}, expected (f, h, w, 3), none of them 0; reshape them")
    height, width = frames.shape[1:3]
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"size: got {height}×{width}, expected even numbers (yuv420p); pad, crop or use lossless=True")
    if not fps > 0 or not 0 <= crf <= 51:
        raise ValueError(f"got fps {fps} and crf {crf}, expected fps > 0 and crf 0 … 51; correct them")
    # No macroblock tree: with AVX-512, x264's reads memory that it never wrote, and no two files would be the same.
    codec, pixels, options = "libx264", "yuv420p", {"crf": str(crf), "x264-params": "no-mbtree=1"}
    if lossless:
        codec, pixels, options = "libx264rgb", "rgb24", {"qp": "0"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.codec_context.thread_count = 1  # x264's choices depend on the number of threads
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels, interpolation=_exact())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
