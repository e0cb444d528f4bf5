"""`python -m experiments.long_clips`: the same as `easi3r long_clips`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("long_clips")
