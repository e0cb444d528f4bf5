"""Memory and time of long clips, `python -m experiments.long_clips`."""
