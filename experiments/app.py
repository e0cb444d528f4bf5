"""`python -m experiments.app`: the same as `easi3r app`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("app")
