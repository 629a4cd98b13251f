"""rainlab: real-time animation of a picture by an endless stream of poses.

A laboratory for "RAIN: Real-time Animation of Infinite Video Stream" (Shu et al., arXiv 2412.19489): K frames stand in
p noise groups in one window, every network call lowers them all, K/p clean frames leave, K/p new ones enter.

    import rainlab
    from rainlab.data.clips import StudioClips
    clip = StudioClips("test", count=1, frames=48, size=(128, 96), facing=True)[0]
    stream = rainlab.Stream(rainlab.load())
    stream.reference(clip.frames[0])
    frames = stream.push(list(clip.condition)) + stream.flush()

Wings, each importing only those before it: this package's modules, method, data, training, baselines, measure, show.
"""

from rainlab import _torchvision  # noqa: F401  first of all: see the reason there


def load(model="small", device="cpu"):
    """The streaming model, ready to use.

    Args:
        model: name of a preset whose weights are shipped ("small", "tiny", "face", "street") or trained here, or the
            path of a file written by :func:`rainlab.method.checkpoint.save_model`, or the folder of the published
            RAIN v0.1.

    Returns:
        :class:`rainlab.method.rain.RAIN` in evaluation mode, fp32.

    Raises:
        FileNotFoundError: neither a preset's name nor a file. ValueError: the file is damaged or no such model.
    """
    from pathlib import Path

    from rainlab.config import PAPER_TASKS, PRESETS, make_preset
    from rainlab.method.checkpoint import load_model
    from rainlab.method.pretrained import load_rain
    from rainlab.training.stages import trained

    if model in PRESETS:
        return trained(make_preset(model), "distill3d", device)
    if Path(model).is_dir():
        return load_rain(model, make_preset("paper", PAPER_TASKS["face"])).to(device)
    if not Path(model).is_file():
        raise FileNotFoundError(f"model: got {str(model)!r}, expected one of {list(PRESETS)} or a model file")
    return load_model(model, device)


def __getattr__(name):
    """`rainlab.Stream` and `rainlab.__version__`, imported when they are asked for."""
    if name == "Stream":
        from rainlab.method.stream import Stream

        return Stream
    if name == "__version__":
        from rainlab.provenance import version

        return version()
    raise AttributeError(f"module 'rainlab' has no attribute {name!r}")
