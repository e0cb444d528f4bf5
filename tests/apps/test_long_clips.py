"""Counted memory of long clips, and the run that shows that windows need no more with the clip's length."""

import re

import numpy as np
import pytest

from easi3r_jax.apps.long_clips import memory
from easi3r_jax.apps.long_clips.figure import long_clips_figure
from easi3r_jax.apps.long_clips.main import describe_run
from easi3r_jax.apps.long_clips.run import WindowRecord, run_windows
from easi3r_jax.models import Precision
from tests.networks import network, small_network


def test_counted_memory_is_at_least_that_of_what_is_held():
    """With T frames there are 10 T - 50 pairs, each with two point maps, their confidences and flow."""
    config, frames = small_network(), 12
    pairs, pixels = 10 * frames - 50, 32 * 48
    counter = memory.MemoryCounter(config, config.image_size, "swinstride-5-noncyclic", Precision(), 16 * 10**9)
    counted = counter.count(frames)
    observations = pairs * pixels * (2 * (3 + 1) + 2) * 4
    assert list(counted) == ["encoding", "first pass", "second pass", "layout", "alignment"]
    assert counted["layout"].total >= observations + pairs * pixels * 12
    # The flow is held as it came, too; and pixels this few make one block, whose gradients are all held.
    assert observations <= counted["alignment"].total <= 4 * observations
    assert counted["second pass"].beside >= observations
    assert counted["encoding"].total < counted["second pass"].total


def test_records_of_a_run(tmp_path):
    model = network(small_network())
    options = {"window": 4, "overlap": 1, "iterations": 2, "progress": lambda *_: None}
    records, seconds = run_windows(model, 13, **options)
    assert [r.frames for r in records] == [4, 7, 10, 13]
    assert sorted(r.seconds for r in records) == [r.seconds for r in records] and records[-1].seconds < seconds
    assert all(r.array_bytes <= records[1].array_bytes for r in records[2:])
    figure = long_clips_figure({4: 2e9, 13: 9e9}, 4, 2e9, 16e9, records, "512x288")
    path = tmp_path / "long.png"
    figure.savefig(path)
    assert path.stat().st_size > 10_000


def test_growth_along_the_clip_is_printed():
    records = [WindowRecord(8 * n, 2.0 * n + (n > 30) * (n - 30), 10**9, 10**9 + n * 10**7) for n in range(1, 41)]
    text = describe_run(records, 90.0)
    assert re.search(r"seconds per window.*: 2\.00, 3\.00", text)
    assert re.search(r"GB of the arrays on the device, likewise: 1\.000, 1\.000", text)
    early, late = map(float, re.search(r"GB of the process, likewise: ([\d.]+), ([\d.]+)", text).groups())
    assert late - early == pytest.approx(np.mean([32, 40]) * 0.01 - np.mean([10, 19]) * 0.01, abs=0.03)


def test_what_cannot_be_counted_is_one_line(here):
    done = here("long_clips", "--height=290")
    assert done.returncode == 1 and "512x290 does not divide into patches of 16" in done.stderr
    done = here("long_clips", "--norun", "--output=x.png")
    assert done.returncode == 1 and done.stderr.startswith("error: --output is a .png and shows the run")
