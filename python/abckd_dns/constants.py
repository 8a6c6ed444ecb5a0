"""What every part of the trainer agrees on."""

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that networks, losses and metrics see."""
