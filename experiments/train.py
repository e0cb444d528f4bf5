"""`python -m experiments.train`: the same as `easi3r train`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("train")
