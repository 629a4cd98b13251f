"""What the paper is: the schedule, the networks, the engine, and frames made with them. Read in this order:
schedule, embeddings, unet, guider, vae, context, rain, stream, sampling, checkpoint.
Imports of this package only `config` and `files`.
"""
