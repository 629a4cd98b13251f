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
    ("StreamDiffusion", "37.13", "Table 2", "RTX 4090", "512×512"),
    ("Live2Diff", "16.43", "Table 2", "RTX 4090", "512×512"),
    ("RAIN", "18.11", "Table 2", "RTX 4090", "512×512"),
    ("PersonaLive", "15.82", "its authors", None, None),
    ("PersonaLive", "10.03 – 12.10", "others", "RTX 5090", None),
    ("MotionStream", "29", "its authors", "H100", None),
    ("StreamDiffusionV2", "58 – 64", "its authors", "4 × H100", None),
)
"""Method, frames a second, who reported them, and what on. RAIN with TensorRT and TinyVAE, DWPose's time included."""

TABLE3 = {
    "K = 16": (23.99, 0.921, 0.063, 85.2),
    "K = 8": (23.72, 0.919, 0.064, 145.8),
    "K = 16, causal mask": (23.63, 0.918, 0.066, 284.5),
}
"""Section 5.4, data and columns of TABLE1."""
