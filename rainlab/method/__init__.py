"""What the paper is. First `rainlab/config.py` and the opening of `stream` (what happens in a tick), then in order:
schedule, embeddings, unet, guider, vae, context, rain, stream, sampling, checkpoint, pretrained.
Imports of this package only `config` and `files`.
"""
