"""Compiles every stage for accelerators that are not there, `python -m experiments.compile_check`."""
