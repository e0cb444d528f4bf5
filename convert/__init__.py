"""The program `python -m convert`, which is `easi3r convert`. The code is in `easi3r_jax/weights/convert`."""
