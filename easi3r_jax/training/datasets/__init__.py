"""Data sets for training: two frames of a sequence with depth and cameras, drawn as MonST3R draws them.

    mixture = Mixture([(open_dataset("pointodyssey", "data/point_odyssey"), 0.5), ...], SamplingConfig())
    with prefetched(lambda step: mixture.batch(seed, step, batch_size=8), start_step) as batches:
        for batch in batches: ...

    sequence    what a data set is to the sampler
    registry    the layouts that can be read, each in a file of its own: pairs_folder (people's own data),
                pointodyssey, spring, tartanair, waymo
    files, exr  arrays, tables and depth maps on disk, none of them trusted
    crop        around the principal point, at the network's size
    sampling    which frames make a pair, and whether it is of any use
    split       which scenes are held out
    mixture     batches, each a pure function of seed and step
    prefetch    batches in the background

Layouts and sources: docs/datasets.md. All arrays are NumPy's; nothing here needs a device.
"""

from easi3r_jax.training.datasets.mixture import Mixture, Pair, PairBatch
from easi3r_jax.training.datasets.pairs_folder import STILL
from easi3r_jax.training.datasets.prefetch import Prefetcher, prefetched
from easi3r_jax.training.datasets.registry import READERS, open_dataset
from easi3r_jax.training.datasets.sampling import MONST3R_SHARES, SamplingConfig
from easi3r_jax.training.datasets.sequence import Dataset, Sequence, View
from easi3r_jax.training.datasets.split import FEWEST_SCENES, hold_out

__all__ = [
    "FEWEST_SCENES",
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
