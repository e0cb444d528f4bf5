"""Measures three properties of the design: cheap statistics, one encoding per frame, one compilation per pass."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from easi3r_jax.apps import flops
from easi3r_jax.apps.benchmark.timing import median_seconds
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.types import Frames
from easi3r_jax.inference import pipeline
from easi3r_jax.models import decoder
from easi3r_jax.models.encoder import Encoder


def statistics_cost(model, frames: Frames, repeats: int) -> dict[str, Any]:
    """Time of the decoder with statistics over its time without, from alternating runs.

    Returns:
      "runs", and for "attention" (mean logits) and "gram" (these and the Gram statistics) the "time_ratio_quartiles"
      and the "counted_flops_share" of the decoder's operations.
    """
    grid = model.grid(frames.rgb.shape[1:3])
    features = pipeline.encode(model, frames)
    batch = min(len(features) - 1, max(1, 2048 // (grid[0] * grid[1])))
    arguments = (model, features[:batch], features[1 : batch + 1])

    def decode(model, a, b, *, gram: bool = False):
        decoded = model.decode(a, b, grid, gram=gram)
        return decoded.tokens_i, decoded.tokens_j, decoded.stats

    def nothing(queries, keys):
        return jnp.zeros((queries.shape[0], queries.shape[2], keys.shape[1]), jnp.float32)

    compiled = {
        name: jax.jit(partial(decode, gram=name == "gram")).lower(*arguments).compile()
        for name in ("attention", "gram")
    }
    with mock.patch.object(decoder, "mean_logits", nothing):
        compiled["without"] = jax.jit(lambda *a: decode(*a)).lower(*arguments).compile()
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    began = time.perf_counter()
    while len(seconds["gram"]) < 9 or (len(seconds["gram"]) < 201 and time.perf_counter() - began < 7 * repeats):
        for name, program in compiled.items():
            seconds[name].append(median_seconds(partial(program, *arguments), 1))
    found: dict[str, Any] = {"runs": len(seconds["gram"])}
    for name in ("attention", "gram"):
        ratios = [x / y for x, y in zip(seconds[name], seconds["without"], strict=True)]
        operations = flops.statistics_flops(model.config, grid, gram=name == "gram")
        found[name] = {
            "time_ratio_quartiles": tuple(statistics.quantiles(ratios, n=4)),
            "counted_flops_share": operations / flops.decoder_flops(model.config, grid),
        }
    return found


@contextlib.contextmanager
def counted_encodings() -> Iterator[list[int]]:
    """Counts the frames that go through the encoder while the context is open."""
    seen: list[int] = []
    original = Encoder.__call__

    def counting(self, images, **options):
        jax.debug.callback(lambda: seen.append(images.shape[0]))
        return original(self, images, **options)

    with mock.patch.object(Encoder, "__call__", counting):
        jax.clear_caches()
        yield seen
        jax.effects_barrier()
    jax.clear_caches()


def full_reconstruction(model, frames: Frames, config: PipelineConfig, compilations: Compilations) -> dict[str, float]:
    """Encodings per frame of the clip, and compilations after the first batch of each pass."""
    after_first: dict[str, int] = {}
    at_first: dict[str, int] = {}

    def observe(stage: str, done: int, total: int, note: str) -> None:
        del note
        if stage in ("attention", "predict") and 0 < done < total:  # before every batch except the first
            at_first.setdefault(stage, compilations.count)
            after_first[stage] = compilations.count - at_first[stage]

    num_frames = len(frames.rgb)
    # Batch sizes that divide the clip: padding would be counted too.
    batch = math.gcd(num_frames, 4)
    options = dataclasses.replace(config, frame_batch=batch)
    with counted_encodings() as seen:
        began = time.perf_counter()
        jax.block_until_ready(pipeline.reconstruct(model, frames, options, progress=observe))
        seconds = time.perf_counter() - began
    return {
        "seconds_with_compilation": seconds,
        "encodings_per_frame": sum(seen) / num_frames,
        "compilations_between_pair_batches": sum(after_first.values()),
    }
