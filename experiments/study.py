"""`python -m experiments.study`: the same as `easi3r study`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("study")
