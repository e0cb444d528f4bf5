"""Training data sets: pairs of frames with depth and cameras, sampled as in MonST3R.

    mixture = Mixture([(open_dataset("pointodyssey", "data/point_odyssey"), 0.5), ...], SamplingConfig())
    with prefetched(lambda step: mixture.batch(seed, step, batch_size=8), start_step) as batches:
        for batch in batches: ...

    sequence    the interface between data sets and the sampler
    registry    the supported layouts, one file each: pairs_folder (the user's own data), pointodyssey, spring,
                tartanair, waymo
    exr         depth maps in OpenEXR files
    crop        crops around the principal point, at the network's size
    sampling    selects pairs of frames, and rejects useless ones
    split       selects held-out scenes
    mixture     batches, each a pure function of seed and step
    prefetch    batches in background threads

Layouts and sources: docs/datasets.md. All arrays are NumPy arrays; nothing here needs a device.
"""

from easi3r_jax.training.datasets.mixture import Mixture, Pair, PairBatch
from easi3r_jax.training.datasets.pairs_folder import STILL
from easi3r_jax.training.datasets.prefetch import Prefetcher, prefetched
from easi3r_jax.training.datasets.registry import READERS, open_dataset
from easi3r_jax.training.datasets.sampling import MONST3R_SHARES, SamplingConfig
from easi3r_jax.training.datasets.sequence import Dataset, Sequence, View
from easi3r_jax.training.datasets.split import MIN_SCENES, hold_out

__all__ = [
    "MIN_SCENES",
    "MONST3R_SHARES",
    "READERS",
    "STILL",
    "Dataset",
    "Mixture",
    "Pair",
    "PairBatch",
    "Prefetcher",
    "SamplingConfig",
    "Sequence",
    "View",
    "hold_out",
    "open_dataset",
    "prefetched",
]
