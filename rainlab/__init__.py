"""rainlab: real-time animation of a picture by an endless stream of poses.

An open, small-scale laboratory for the paper "RAIN: Real-time Animation of INfinite video stream" (arXiv 2412.19489):
K frames stand at p noise levels in one window, every call of the network lowers all of them, and K/p clean frames
leave.

    from rainlab import plot
    from rainlab.clips import StudioClips
    from rainlab.pose import draw

    clip = StudioClips("test", count=1, frames=48)[0]
    plot.video(clip.frames)
"""

from rainlab import _torchvision  # noqa: F401  first of all: see the reason there

__version__ = "0.1.0"
