"""rainlab: real-time animation of a picture by an endless stream of poses.

A laboratory for "RAIN: Real-time Animation of Infinite Video Stream" (Shu et al., arXiv 2412.19489): K frames stand in
p noise groups in one window, every network call lowers them all, K/p clean frames leave, K/p new ones enter.

    import rainlab
    from rainlab import clips, stream
    clip = clips.StudioClips("test", count=1, frames=48)[0]
    live = stream.Stream(rainlab.load("tiny"), window=16, groups=4)
    live.reference(clip.frames[0])
    frames = live.push(list(clip.condition)) + live.flush()
"""

from rainlab import _torchvision  # noqa: F401  first of all: see the reason there

__version__ = "0.1.0"


def load(model, device="cpu"):
    """The streaming model, ready to use.

    Args:
        model: name of a preset whose weights are shipped or trained here ("tiny"), or the path of a file
            written by :func:`rainlab.checkpoint.save`.

    Returns:
        :class:`rainlab.model.RAIN` in evaluation mode, fp32.

    Raises:
        FileNotFoundError: neither a preset's name nor a file. ValueError: the file is damaged or no such model.
    """
    from pathlib import Path

    from rainlab import checkpoint, config, stages

    if model in config.PRESETS:
        return stages.load_model(config.preset(model), "distill3d", device)
    if not Path(model).is_file():
        raise FileNotFoundError(f"model: got {str(model)!r}, expected one of {list(config.PRESETS)} or a model file")
    return checkpoint.load(model, device)
