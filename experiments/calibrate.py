"""`python -m experiments.calibrate`: the same as `easi3r calibrate`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("calibrate")
