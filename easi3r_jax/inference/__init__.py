"""Runs the method on a clip; start reading at `pipeline`."""
