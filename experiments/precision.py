"""`python -m experiments.precision`: the same as `easi3r precision`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("precision")
