"""`python -m convert`: the same as `easi3r convert`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("convert")
