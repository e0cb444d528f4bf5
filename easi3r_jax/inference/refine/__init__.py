"""Refinement of dynamic masks: by a video segmentation network that tracks them, or by reprojection into other frames.

Entry points: `Sam2Refiner`, and `alternate` with any other network; `ReprojectionRefiner`, which needs no network.
"""

from easi3r_jax.inference.refine.alternate import Tracker, alternate
from easi3r_jax.inference.refine.reprojection import ReprojectionRefiner
from easi3r_jax.inference.refine.sam2 import Sam2Refiner

__all__ = ["ReprojectionRefiner", "Sam2Refiner", "Tracker", "alternate"]
