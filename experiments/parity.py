"""`python -m experiments.parity`: the same as `easi3r parity`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("parity")
