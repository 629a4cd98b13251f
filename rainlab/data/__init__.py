"""What is trained and measured on: clips from the procedural studio or from video files, their condition pictures,
and the training set made of them.
Imports `method` (pictures become latents) and the base.
"""
