"""`python -m experiments.reconstruct`: the same as `easi3r reconstruct`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("reconstruct")
