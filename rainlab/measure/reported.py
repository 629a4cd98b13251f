"""What the paper reports (arXiv 2412.19489v1), and what others report of the speed of systems beside it."""

QUALITY = ("PSNR ↑", "SSIM ↑", "LPIPS ↓", "FVD ↓")

TABLE1 = {
    "MRAA": (None, 0.749, 0.212, 253.6),
    "TPSMM": (None, 0.746, 0.213, 247.5),
    "BDMM": (24.07, 0.918, 0.048, 168.3),
    "DreamPose": (None, 0.885, 0.068, 238.7),
    "DreamPose without finetuning": (34.75, 0.879, 0.111, 279.6),
    "AnimateAnyone": (38.49, 0.931, 0.044, 81.6),
    "RAIN": (23.99, 0.921, 0.063, 85.2),
}
"""UBC-Fashion, 512 pixels wide and 768 high; columns of QUALITY."""

OVERFLOWED = {"DreamPose without finetuning": 34.75, "AnimateAnyone": 38.49, "RAIN": 37.20}
"""PSNR computed with uint8 overflow: method -> dB. The footnote: "These PSNR values above 30 are the results of
overflow. Their authors use code that treat image array as uint8 type. If the overflowed algorithm is used, the PSNR
value of RAIN is 37.20." """

TABLE2 = (
    ("StreamDiffusion", "37.13", "Table 2", "RTX 4090", None),
    ("Live2Diff", "16.43", "Table 2", "RTX 4090", None),
    ("RAIN", "18.11", "Table 2", "RTX 4090", "512×512"),
    ("PersonaLive", "15.82", "arXiv 2512.11253", None, None),
    ("MotionStream", "29", "arXiv 2511.01266", "H100", "480p"),
    ("StreamDiffusionV2", "58.28 – 64.52", "arXiv 2511.07399", "4 × H100", None),
)
"""Method, frames a second, who reported them, and on what and in which size, None where that is not said. RAIN with
TensorRT and TinyVAE, DWPose's time included, its size that of section 5; of the others Table 2 names the GPU alone."""

TABLE3 = {
    "K = 16": (23.99, 0.921, 0.063, 85.2),
    "K = 8": (23.72, 0.919, 0.064, 145.8),
    "K = 16, causal mask": (23.63, 0.918, 0.066, 284.5),
}
"""Section 5.4, data and columns of TABLE1."""

THA4 = {
    "table2": {"THA3": (22.369, 0.9094, 0.0480), "Section 3.1": (22.962, 0.9195, 0.0336)},
    "table4": {"top": (36.156, 0.9914, 0.0061), "middle": (36.048, 0.9883, 0.0066), "bottom": (34.543, 0.9863, 0.0087)},
    "table6": {"Vanilla SIREN": (38.259,), "Section 4.1 w/o multi-res": (38.923,), "Section 4.1": (38.881,)},
    "table7": {
        "A": (29.308, 0.9739, 0.0164), "B": (29.118, 0.9729, 0.0167), "C": (29.484, 0.9746, 0.0160),
        "D": (38.026, 0.9946, 0.0054), "E": (38.668, 0.9954, 0.0036), "F": (37.399, 0.9943, 0.0060),
        "G": (38.881, 0.9956, 0.0033),
    },
    "table8": {
        "THA3": (25.344, 0.9094, 0.0422), "Section 3.1": (25.650, 0.9143, 0.0294), "student": (25.754, 0.9154, 0.0330),
        "AnimateAnyone": (19.935, 0.7955, 0.1441),
    },
}  # fmt: skip
"""Talking Head Anime 4: tables 2, 4, 6, 7 and 8 (whole pictures), columns PSNR, SSIM, LPIPS; 512×512."""
THA4_SPEED = {"THA3": (35.899, 41.409, 64.607), "Section 3.1": (125.843, 116.763, 159.647),
              "student": (12.523, 15.098, 22.091)}  # fmt: skip
"""Tables 3 and 5: milliseconds a frame on an RTX A6000, a Titan RTX and a GTX 1080 Ti."""
POSE_ANIMATE = {
    "IP-Adapter, ControlNet": (0.466, 0.937, 94.88, 0.1323),
    "Disco": (0.278, 0.811, 92.23, 0.0434),
    "MagicAnimate, DensePose": (0.273, 0.870, 97.87, 0.0193),
    "MagicAnimate, OpenPose": (0.411, 0.867, 97.63, 0.0261),
    "PoseAnimate": (0.247, 0.948, 97.33, 0.0384),
}
"""PoseAnimate's Table 1: LPIPS and CLIP-I to the source picture, frame consistency, warping error; 16 frames, 512²."""
