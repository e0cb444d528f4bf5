"""Ablation of the attention cue: the contribution of each layer and head, omitted and alone.

    python -m experiments.ablate_cue                                      # the embedded network on the bundled clip
    python -m experiments.ablate_cue --checkpoint=model.pth --clip=clips/NAME

The area under the ROC curve of the first pass's clustered score, of pixels against the masks of dynamic regions (0.5:
chance). Beside it, the same in the clip's motionless twin, against the objects that would move: anything above 0.5
there is not motion.
"""

from __future__ import annotations

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps import cli
from easi3r_jax.apps.progress import table
from easi3r_jax.apps.study.clips import StudyClip, read
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.metrics import roc_auc
from easi3r_jax.inference import pipeline
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.models import DUSt3R
from easi3r_jax.weights.load import load_model

FLAGS = cli.Flags(__doc__, cached=True)
_WHAT = FLAGS.group("What is measured")
CHECKPOINT = _WHAT.string("checkpoint", "embedded", "Weights, as for experiments.reconstruct.")
CLIP = _WHAT.string("clip", "demo", "Clip folder NAME with ground truth and a twin NAME_still beside it.")
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Which frames are paired.")
SEED = _WHAT.seed("seed", 0, "Seed of k-means.")


def main() -> None:
    model = load_model(CHECKPOINT.value)
    twins = read(CLIPS / "demo" if CLIP.value == "demo" else pathlib.Path(CLIP.value).expanduser(), model.config)
    if twins.still.movers is None:
        raise InputError(f"The ground truth of {CLIP.value} has no instance numbers, so the twin cannot be scored.")
    names, parts = cue_parts(model.config.dec_depth, model.config.dec_heads)
    channels = np.stack([1 - parts, parts])  # without each part, and each part alone
    columns = np.concatenate([aucs(model, clip, channels) for clip in (twins.moving, twins.still)])
    rows = [(name, *(f"{value:.3f}" for value in values)) for name, values in zip(names, columns.T, strict=True)]
    whole = ("everything", "", rows[0][2], "", rows[0][4])
    print(table([whole, *rows[1:]], ("AUC", "omitted", "alone", "omitted, still", "alone, still")))


def cue_parts(layers: int, heads: int) -> tuple[list[str], np.ndarray]:
    """Names, and (K, L, A) 0 or 1: all of the cue, every layer, every head."""
    by_layer = np.eye(layers)[:, :, None] * np.ones(heads)
    by_head = np.eye(layers * heads).reshape(-1, layers, heads)
    names = ["all", *(f"layer {n + 1}" for n in range(layers))]
    names += [f"layer {n // heads + 1}, head {n % heads + 1}" for n in range(layers * heads)]
    return names, np.concatenate([np.ones((1, layers, heads)), by_layer, by_head])


def aucs(model: DUSt3R, clip: StudyClip, channels: np.ndarray) -> np.ndarray:
    """(2, K) AUC of the clip's scores with weights (2, K, L, A) of layers and heads."""
    size, config = clip.frames.rgb.shape[1:3], SegmentationConfig()
    grid, edges = model.grid(size), pipeline.clip_edges(len(clip.frames.rgb), GRAPH.value)
    features = pipeline.encode(model, clip.frames)
    temporal = pipeline.attention_pass(model, features, edges, grid)
    labels = _cluster(features, grid, config, jax.random.key(SEED.value))
    scores = np.asarray(_scores(temporal, labels, jnp.asarray(channels.reshape(-1, *channels.shape[2:])), size, config))
    assert clip.movers is not None
    found = [roc_auc(score, clip.movers) for score in scores]
    return np.array(found, float).reshape(channels.shape[:2])


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))


@partial(jax.jit, static_argnames=("size", "config"))
def _scores(temporal: motion.TemporalState, labels: Array, channels: Array, size: tuple[int, int], config) -> Array:
    """(K, T, H, W) scores per pixel, all in one call."""

    def one(weights: Array) -> Array:
        cue = motion.CueWeights(weights.astype(jnp.float32), jnp.ones(4))
        return motion.upsample(motion.motion_maps(temporal, labels, config, weights=cue).score, size)

    return jax.vmap(one)(channels)
