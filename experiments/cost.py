"""`python -m experiments.cost`: the same as `easi3r cost`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("cost")
