"""Programs: `easi3r NAME`, or from a checkout `python -m experiments.NAME`. `command` lists and starts them."""
