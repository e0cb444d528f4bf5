"""A wall seen by two cameras, with complete ground truth."""

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.geometry import camera
from easi3r_jax.training.batch import ViewPairs

HEIGHT, WIDTH, PATCH = 16, 24, 8


def wall(shift: tuple[float, float, float], *, depth: float = 2.0, focal: float = 20.0, batch: int = 1) -> ViewPairs:
    """A wall at z = `depth` of the first camera; the second camera is `shift` (world units) away from it."""
    poses = np.tile(np.eye(4, dtype=np.float32), (batch, 2, 1, 1))
    poses[:, 1, :3, 3] = shift
    z = np.full((batch, 2, HEIGHT, WIDTH), depth, np.float32)
    z[:, 1] -= shift[2]
    intrinsics = camera.intrinsics(jnp.float32(focal), camera.default_principal_point(HEIGHT, WIDTH))
    rgb = jax.random.randint(jax.random.key(0), (batch, 2, HEIGHT, WIDTH, 3), 0, 256).astype(jnp.uint8)
    return ViewPairs(
        rgb=rgb,
        depth=jnp.asarray(z),
        intrinsics=jnp.tile(intrinsics, (batch, 2, 1, 1)),
        world_from_cam=jnp.asarray(poses),
    )
