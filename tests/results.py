"""Result folders of hand-made scenes."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from easi3r_jax.core.types import Frames, Given, MotionMaps, Reconstruction, Scene4D
from easi3r_jax.io import results
from easi3r_jax.io.export import CloudOptions

_CLOUD = {field.name for field in dataclasses.fields(CloudOptions)}


def write_result(
    folder,
    scene: Scene4D,
    motion: MotionMaps | None = None,
    *,
    frames: Frames,
    config: dict[str, Any],
    source_names=None,
    threshold: float | None = None,
    losses=None,
    flow=None,
    **options: Any,
) -> pathlib.Path:
    """`results.save_result` of a result that is made of these; options of clouds and of `save_result` by name."""
    values, edges, known = flow or (None, None, None)
    result = Reconstruction(
        scene=scene,
        frames=dataclasses.replace(frames, names=None if source_names is None else tuple(source_names)),
        motion=motion,
        threshold=None if threshold is None else np.float32(threshold),
        losses=losses,
        given=Given(flow=values, flow_known=known),
        edges=edges,
        record=config,
    )
    clouds = CloudOptions(**{name: options.pop(name) for name in _CLOUD & options.keys()})
    return results.save_result(folder, result, clouds=clouds, **options)
