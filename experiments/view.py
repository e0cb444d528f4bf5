"""`python -m experiments.view`: the same as `easi3r view`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("view")
