"""Evaluates a network on rendered held-out pairs of views.

    python -m experiments.validate                                        # the network that ships with the package
    python -m experiments.validate --checkpoint=runs/embedded/model --json=metrics.json
    python -m experiments.validate --moving                               # two times of dynamic scenes

Points, depth, relative pose and focal length against the ground truth. The baseline is the same network, shown the
first view twice: what it can do without a second view. `experiments.train` ends with the same table.
"""

from __future__ import annotations

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.apps.progress import table
from easi3r_jax.apps.training_data import rendered
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io.export import write_json
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic import PairSampling
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.validation import evaluate
from easi3r_jax.weights.load import load_model_and_metadata

FLAGS = cli.Flags(__doc__, cached=True)

_WHAT = FLAGS.group("What is measured")
CHECKPOINT = _WHAT.string("checkpoint", "embedded", "Weights, as for experiments.reconstruct.")
PRECISION = precision_flag(_WHAT)
NUM = _WHAT.integer("num", 256, "Number of pairs; each is evaluated in both directions.", at_least=1)
MOVING = _WHAT.boolean("moving", False, "Use dynamic scenes instead of static ones.")
ARC_DEG = _WHAT.number(
    "arc_deg",
    PairSampling.arc_deg,
    "Static scenes: maximum angle in degrees between the two cameras, around the point that the first one looks at.",
    at_most=360.0,
)
BATCH_SIZE = _WHAT.integer("batch_size", 16, "Pairs per batch.", at_least=1)
JSON = _WHAT.output_file("json", "Also write the metrics to this file.")


def main() -> None:
    if MOVING.value and ARC_DEG.present:
        raise ConfigError("--arc_deg applies to static scenes: omit it or --moving.")
    model, metadata = load_model_and_metadata(CHECKPOINT.value, PRECISION.value)
    pairs = rendered(model.config.image_size, seed=0, moving=MOVING.value, arc_deg=ARC_DEG.value).held_out(NUM.value)
    metrics = measure(model, pairs, BATCH_SIZE.value)
    print(shown(metrics, len(pairs.rgb)))
    if JSON.value:
        write_json(JSON.value, {**metrics, "checkpoint": metadata, "options": FLAGS.values(), "versions": versions()})


def measure(model: DUSt3R, pairs: ViewPairs, batch_size: int) -> dict[str, dict[str, float]]:
    """Metrics of the network (`evaluate`), and of the same network shown view 1 twice."""
    return {
        "model": evaluate(model, pairs, batch_size=batch_size),
        "view_1_twice": evaluate(model, pairs, batch_size=batch_size, copied=True),
    }


def shown(metrics: dict[str, dict[str, float]], count: int) -> str:
    """The metrics as a table."""
    copied = metrics["view_1_twice"]
    rows = [(name, f"{value:.4f}", f"{copied[name]:.4f}") for name, value in metrics["model"].items()]
    return table(rows, (f"{count} held-out pairs", "model", "view 1 shown twice"))
