"""Measures a network on rendered pairs of views that no training has seen.

    python -m experiments.validate                                        # the network that ships with the package
    python -m experiments.validate --checkpoint=runs/embedded/model --json=metrics.json
    python -m experiments.validate --moving                               # two moments of scenes that move

Points, depth, relative pose and focal length against the truth, beside the same network that is shown the first view
twice: what it knows without a second one. `experiments.train` ends with the same table.
"""

from __future__ import annotations

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.progress import table
from easi3r_jax.apps.training_data import rendered
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io.export import write_json
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic import PairSampling
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.validation import evaluate
from easi3r_jax.weights.load import load_model_and_metadata

FLAGS = cli.Flags(__doc__)

_WHAT = FLAGS.group("What is measured")
CHECKPOINT = _WHAT.string("checkpoint", "embedded", "Weights, as experiments.reconstruct takes them.")
DTYPE = _WHAT.choice("dtype", "auto", ["auto", "float32", "bfloat16"], "Of the network's layers.")
NUM = _WHAT.integer("num", 256, "Pairs; each counts in both directions.", at_least=1)
MOVING = _WHAT.boolean("moving", False, "Pairs of scenes that move, instead of scenes at rest.")
ARC_DEG = _WHAT.number(
    "arc_deg",
    PairSampling.arc_deg,
    "Scenes at rest: the second camera is up to so many degrees away around what the first one looks at.",
    at_least=0.0,
)
BATCH_SIZE = _WHAT.integer("batch_size", 16, "Pairs at a time.", at_least=1)
JSON = _WHAT.string("json", "", "Also write the figures here.")


def main() -> None:
    if MOVING.value and ARC_DEG.present:
        raise ConfigError("--arc_deg is of scenes at rest; leave it or --moving away.")
    model, metadata = load_model_and_metadata(CHECKPOINT.value, DTYPE.value)
    pairs = rendered(model.config.image_size, seed=0, moving=MOVING.value, arc_deg=ARC_DEG.value).held_out(NUM.value)
    figures = measure(model, pairs, BATCH_SIZE.value)
    print(shown(figures, len(pairs.rgb)))
    if JSON.value:
        write_json(JSON.value, {**figures, "checkpoint": metadata, "options": FLAGS.values(), "versions": versions()})


def measure(model: DUSt3R, pairs: ViewPairs, batch_size: int) -> dict[str, dict[str, float]]:
    """Figures of the network (`evaluate`), and of the same shown view 1 twice."""
    return {
        "model": evaluate(model, pairs, batch_size=batch_size),
        "view_1_twice": evaluate(model, pairs, batch_size=batch_size, copied=True),
    }


def shown(figures: dict[str, dict[str, float]], count: int) -> str:
    """The figures as a table."""
    copied = figures["view_1_twice"]
    rows = [(name, f"{value:.4f}", f"{copied[name]:.4f}") for name, value in figures["model"].items()]
    return table(rows, (f"{count} held-out pairs", "model", "view 1 shown twice"))
