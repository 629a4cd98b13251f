"""Let torchvision be imported beside a CPU build of torch.

Every torchvision wheel of the package registry links CUDA libraries. Beside a CPU torch its compiled extension can't
be loaded, the operators `nms` and `qnms` are never defined, and `import torchvision` dies with "operator
torchvision::nms does not exist" - and with it torchmetrics, diffusers and transformers, which only need its Python
part. Declaring the two operators, without an implementation, is enough. What stays out of reach is what the extension
implements: `torchvision.ops` and its image files.

This has to run before anything imports torchvision, so it is the first thing that `rainlab` imports. It doesn't import
torchvision itself (more than a second): whether the extension loads is found out by loading just that one file, which
is also what torchvision does first.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the declarations live as long as this object


def _extension_loads() -> bool:
    """True where torchvision is not installed (nothing to repair) or its compiled operators are there."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for file in sorted(Path(spec.origin).parent.glob("_C*")):  # _C.so, _C.pyd
        try:
            torch.ops.load_library(file)  # a second load of the same file does nothing
        except OSError:
            continue
    return hasattr(torch.ops.torchvision, "nms")


# Beside a CUDA build a torchvision that doesn't load is a broken installation: its own message is the right one.
if torch.version.cuda is None and not _extension_loads():
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _library.define(_name + _SCHEMA)
