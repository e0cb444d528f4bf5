"""Programs: each is run as `python -m experiments.NAME`."""

import sys

from easi3r_jax import interrupt

if sys.argv[:1] == ["-m"]:  # Python is looking for the program to run: before its imports, which take seconds
    interrupt.install()
