"""rainlab: real-time animation of a picture by an endless stream of poses.

A laboratory for "RAIN: Real-time Animation of Infinite Video Stream" (Shu et al., arXiv 2412.19489): K frames stand in
p noise groups in one window, every network call lowers them all, K/p clean frames leave, K/p new ones enter.

    from rainlab import clips, config, stages, stream
    model = stages.load_model(config.preset("tiny"), "distill3d")
    clip = clips.StudioClips("test", count=1, frames=48)[0]
    live = stream.Stream(model, window=16, groups=4)
    live.reference(clip.frames[0])
    frames = live.push(list(clip.condition)) + live.flush()
"""

from rainlab import _torchvision  # noqa: F401  first of all: see the reason there

__version__ = "0.1.0"
