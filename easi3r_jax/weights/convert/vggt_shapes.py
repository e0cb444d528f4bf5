"""The architecture of a VGGT state dict, from its names and shapes: released files do not say it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.models.vggt.config import HEADS, VGGTConfig
from easi3r_jax.weights.convert.rules import Shape

_MARKS = ("aggregator.frame_blocks.0.norm1.weight", "aggregator.camera_token")
_NEEDED = ("camera", "depth")
#: Larger than any network: nonsense is refused before it costs time or memory.
_MAX_DEPTH, _MAX_WIDTH = 256, 16384


def network_of(shapes: Mapping[str, Shape]) -> VGGTConfig | None:
    """The architecture; None if the names are not VGGT's. Point and track heads may be missing.

    What the shapes do not say is as in the released network: the numbers of iterations, and the heads of the encoder
    and of the camera head, as many as the aggregator's.

    Raises:
      CheckpointError: no camera head or no depth head, or sizes of no VGGT network.
    """
    if not is_vggt(shapes):
        return None
    heads = tuple(name for name in HEADS if any(key.startswith(f"{name}_head.") for key in shapes))
    for name in _NEEDED:
        if name not in heads:
            raise CheckpointError(
                f"these weights of VGGT have no {name} head ({name}_head.*), without which there is no reconstruction: "
                "take a checkpoint with camera and depth heads, such as facebook/VGGT-1B"
            )
    try:
        return _config(shapes, heads)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, ConfigError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"it is no VGGT network that is known here ({what})") from error


def is_vggt(names: Collection[str]) -> bool:
    """Whether names are those of VGGT's tensors."""
    return any(mark in names for mark in _MARKS)


def _config(shapes: Mapping[str, Shape], heads: tuple[str, ...]) -> VGGTConfig:
    agg, encoder, depth_head = "aggregator", "aggregator.patch_embed", "depth_head"
    dino = f"{encoder}.pos_embed" in shapes
    proj = shapes[f"{encoder}.patch_embed.proj.weight" if dino else f"{encoder}.proj.weight"]
    dim, patch = proj[0], proj[-1]
    side = round((shapes[f"{encoder}.pos_embed"][1] - 1) ** 0.5) * patch if dino else VGGTConfig.image_size[0]
    width = shapes[f"{depth_head}.projects.0.weight"][0]
    level_dims = (width, *(shapes[f"{depth_head}.projects.{n}.weight"][0] for n in (1, 2, 3)))
    track: dict[str, Any] = {}
    if "track" in heads:
        tracker = "track_head.tracker"
        hidden, products = shapes[f"{tracker}.corr_mlp.fc1.weight"]
        levels, radius = _window(products)
        features = shapes[f"{tracker}.fmap_norm.weight"][0]
        track = {"track_features": features, "track_hidden": hidden, "track_levels": levels, "track_radius": radius}
    sizes: dict[str, Any] = {
        "level_dims": level_dims,
        "image_size": (side, side),
        "patch_size": patch,
        "encoder": "dino" if dino else "conv",
        "enc_depth": _count(shapes, f"{encoder}.blocks") if dino else VGGTConfig.enc_depth,
        "dim": dim,
        "depth": _count(shapes, f"{agg}.frame_blocks"),
        "num_heads": dim // shapes[f"{agg}.frame_blocks.0.attn.q_norm.weight"][0],
        "registers": shapes[f"{agg}.register_token"][2],
        "mlp_ratio": shapes[f"{agg}.frame_blocks.0.mlp.fc1.weight"][0] / dim,
        "camera_depth": _count(shapes, "camera_head.trunk"),
        "features": shapes[f"{depth_head}.scratch.layer1_rn.weight"][0],
    }
    config = VGGTConfig(heads=heads, **sizes, **track)
    widths = (config.dim, config.features, side, *level_dims, config.track_features, config.track_hidden)
    if max(widths) > _MAX_WIDTH or max(config.depth, config.enc_depth, config.camera_depth) > _MAX_DEPTH:
        raise ValueError("its sizes are larger than any network's")
    return config


def _count(shapes: Mapping[str, Shape], stack: str) -> int:
    """Blocks of a stack."""
    found = {match[1] for key in shapes if (match := re.match(rf"{re.escape(stack)}\.(\d+)\.", key))}
    return len(found)


def _window(products: int) -> tuple[int, int]:
    """Levels and radius of a number of correlations, levels (2 radius + 1)²: with the largest radius that fits."""
    radius = max(r for r in range(1, 9) if products % (2 * r + 1) ** 2 == 0)
    return products // (2 * radius + 1) ** 2, radius
