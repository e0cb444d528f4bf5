"""Made-up times of an evaluation, long and short as those of real videos are.

python -m tests.timed_clips FOLDER      # a results.jsonl of 500 sequences, for `experiments.cost --records=FOLDER`
"""

import pathlib
import sys

import numpy as np

from easi3r_jax.apps.evaluate.records import RESULTS, Record, append


def timed_records(count=500, seed=0):
    """Frames are log-normal: half of the clips have 40 at most, one in a hundred 400 or more. A frame takes 1 s ± 20 %.

    One in ten compiled for a minute, which is included in its seconds.
    """
    rng = np.random.default_rng(seed)
    frames = np.clip(np.rint(40 * np.exp(rng.normal(size=count))), 3, 2000).astype(int)
    work = frames * np.exp(0.2 * rng.normal(size=count))
    compiled = np.where(rng.uniform(size=count) < 0.1, 60.0, 0.0)
    return [
        Record("made-up", str(n), 0, "0", t, {}, None, float(s + c), {}, "none", "0", n, compile_seconds=float(c))
        for n, (t, s, c) in enumerate(zip(frames.tolist(), work, compiled, strict=True))
    ]


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True)
    append(folder / RESULTS, *timed_records())
