"""`python -m experiments.ablate_cue`: the same as `easi3r ablate_cue`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("ablate_cue")
