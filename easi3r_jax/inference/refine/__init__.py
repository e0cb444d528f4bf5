"""Refinement of dynamic masks by a video segmentation network that tracks them from frame to frame.

Entry points: `Sam2Refiner`, and `alternate` with any other network.
"""

from easi3r_jax.inference.refine.alternate import Tracker, alternate
from easi3r_jax.inference.refine.sam2 import Sam2Refiner

__all__ = ["Sam2Refiner", "Tracker", "alternate"]
