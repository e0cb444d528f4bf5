"""Writes scenes to files: the parts of a result folder, exports for other tools, clip folders with ground truth.

See docs/conventions.md.
"""

from __future__ import annotations

from easi3r_jax.io.export.clip import ensure_clip_writable, write_clip
from easi3r_jax.io.export.flow import write_flow
from easi3r_jax.io.export.formats import (
    FORMATS,
    WITH_IMAGES,
    WITH_POINTS,
    Exported,
    ensure_export_writable,
    frames_of,
    parse_formats,
    write_export,
)
from easi3r_jax.io.export.glb import gltf_from_world, write_glb
from easi3r_jax.io.export.images import write_depth, write_masks
from easi3r_jax.io.export.jsonfile import to_json, write_json
from easi3r_jax.io.export.npz import load_scene, write_scene
from easi3r_jax.io.export.ply import write_ply
from easi3r_jax.io.export.pointcloud import MIN_CONFIDENCE, CloudOptions, Points, SceneCloud, point_cloud
from easi3r_jax.io.export.trajectory import write_intrinsics, write_tum
from easi3r_jax.io.export.views import Views
from easi3r_jax.io.pictures.colors import flow_image
from easi3r_jax.io.pictures.gallery import Gallery
from easi3r_jax.io.pictures.movies import frame_rate, write_gif, write_mp4
from easi3r_jax.io.pictures.panels import Film
from easi3r_jax.io.pictures.summary import summary_figure, write_summary

__all__ = [
    "FORMATS",
    "MIN_CONFIDENCE",
    "WITH_IMAGES",
    "WITH_POINTS",
    "CloudOptions",
    "Exported",
    "Film",
    "Gallery",
    "Points",
    "SceneCloud",
    "Views",
    "ensure_clip_writable",
    "ensure_export_writable",
    "flow_image",
    "frame_rate",
    "frames_of",
    "gltf_from_world",
    "load_scene",
    "parse_formats",
    "point_cloud",
    "summary_figure",
    "to_json",
    "write_clip",
    "write_depth",
    "write_export",
    "write_flow",
    "write_gif",
    "write_glb",
    "write_intrinsics",
    "write_json",
    "write_masks",
    "write_mp4",
    "write_ply",
    "write_scene",
    "write_summary",
    "write_tum",
]
