"""`python -m experiments.evaluate`: the same as `easi3r evaluate`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("evaluate")
