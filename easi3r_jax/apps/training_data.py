"""The sources of training pairs (`--data`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from easi3r_jax.apps import flag_values
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Int
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.synthetic import ClipConfig, MovingSampling, PairSampling
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.datasets import (
    MIN_SCENES,
    MONST3R_SHARES,
    READERS,
    Dataset,
    Mixture,
    SamplingConfig,
    hold_out,
    open_dataset,
    prefetched,
)
from easi3r_jax.training.rendered import HELD_OUT_SEED, draw_moving, draw_static, held_out_pairs
from easi3r_jax.training.step import Draw

#: More threads would only wait for the disk and hold batches in memory.
_MAX_THREADS = 8
#: Whether the scenes of a layout are static; unknown for clip folders.
_IS_STATIC = {"tartanair": True, "pointodyssey": False, "spring": False, "waymo": False}


@dataclasses.dataclass(frozen=True)
class PairSource:
    """A source of training pairs.

    Attributes:
      description: everything that determines the pairs, JSON values.
      draw: renders pairs on the training device; None if pairs are read.
      held_out: returns the given number of pairs that no step trains on.
      is_static: whether all scenes are static; None if unknown.
      notes: lines about the data for the user.
      redrawn: number of rejected pairs so far, by reason.
      batches: (step, batch size, indices) -> a context with an iterator over the batches from that step on, or with
        None if pairs are rendered. Of each batch, only the pairs with these indices are read; None: all.
    """

    description: dict[str, Any]
    draw: Draw | None
    held_out: Callable[[int], ViewPairs]
    is_static: bool | None
    notes: tuple[str, ...]
    redrawn: Callable[[], dict[str, int]]
    batches: Callable[..., AbstractContextManager[Iterator[ViewPairs] | None]]


def open_source(data: str, image_size: tuple[int, int], *, seed: int, moving: bool) -> PairSource:
    """Opens the source that `--data` names.

    Args:
      data: as typed; empty for rendered scenes.
      image_size: (H, W) of the network.
      seed: of the pairs.
      moving: whether rendered scenes are dynamic.

    Raises:
      ConfigError: a reserved seed, or invalid names or weights.
      InputError: folders that are missing or do not have the named layout.
    """
    if seed >= HELD_OUT_SEED:
        raise ConfigError(f"--seed must be below {HELD_OUT_SEED}, the seed of the held-out pairs.")
    return _read(data, image_size, seed) if data else rendered(image_size, seed, moving=moving)


def rendered(
    image_size: tuple[int, int], seed: int, *, moving: bool, arc_deg: float = PairSampling.arc_deg
) -> PairSource:
    """Pairs of procedural scenes, rendered on the training device; static ones have cameras within `arc_deg`."""
    if moving:
        sampling = MovingSampling(clip=ClipConfig(size=image_size))
        draw = functools.partial(draw_moving, sampling)
    else:
        sampling = PairSampling(size=image_size, arc_deg=arc_deg)
        draw = functools.partial(draw_static, sampling)
    return PairSource(
        description={"moving" if moving else "static": dataclasses.asdict(sampling)},
        draw=functools.partial(draw, seed),
        held_out=functools.partial(held_out_pairs, draw),
        is_static=not moving,
        notes=(),
        redrawn=dict,
        batches=lambda step, batch_size, indices=None: contextlib.nullcontext(None),
    )


def check_terms(config: TrainConfig, model_config: DUSt3RConfig, source: PairSource, chosen: dict[str, float]) -> None:
    """Refuses the terms that are not in the papers where they would be wrong or without effect.

    Args:
      config, model_config, source: of the run.
      chosen: the values of `--matching_weight` and `--attention_weight`; negative: the preset's.
    """
    used = [name for name in chosen if getattr(config.objective, name) > 0]
    off = " ".join(f"--{name}=0" for name in used)
    if used and source.is_static is False:
        raise ConfigError(
            f"{' and '.join(used)} above 0 require static scenes, and this data has dynamic ones: add {off}."
        )
    if source.is_static is None and (unsaid := [name for name in used if chosen[name] < 0]):
        weights = " ".join(f"--{name}={getattr(config.objective, name)}" for name in unsaid)
        raise ConfigError(
            f"{' and '.join(unsaid)} require static scenes, and this data may have dynamic ones: add {off}, or "
            f"{weights} if you know that it has none."
        )
    layer = config.objective.attention_layer
    if config.objective.attention_weight > 0 and (layer >= model_config.dec_depth or model_config.dec_heads < 2):
        raise ConfigError(
            f"attention_weight supervises half the heads of decoder layer {layer}, counted from 0; this network has "
            f"{model_config.dec_depth} layers of {model_config.dec_heads} heads: add --attention_weight=0."
        )


def _read(data: str, image_size: tuple[int, int], seed: int) -> PairSource:
    height, width = image_size
    # A network of 512 pixels is trained at several sizes; small ones at their own.
    sampling = SamplingConfig() if max(image_size) == 512 else SamplingConfig(sizes=((width, height),))
    parts = [_part(part) for part in data.split(",")]
    read, trained, validated, notes = [], [], [], []
    for name, folder, weight in parts:
        dataset = open_dataset(name, folder)
        remaining, held_out = hold_out(dataset)
        trained.append((remaining, weight))
        validated.append((held_out or dataset, weight))
        read.append([name, _fingerprint(dataset), len(held_out.sequences) if held_out else 0, weight])
        if held_out is None:
            notes.append(
                f"{name}:{folder} has fewer than {MIN_SCENES} scenes: none is held out. Its held-out pairs are "
                "other pairs of the training scenes, and say little about new ones."
            )
    mixture, others = Mixture(trained, sampling), Mixture(validated, sampling)
    threads = min(max(sharding.num_cores() // 2, 2), _MAX_THREADS)

    @contextlib.contextmanager
    def batches(
        step: int, batch_size: int, indices: Int[np.ndarray, "own"] | None = None
    ) -> Iterator[Iterator[ViewPairs]]:
        def batch(n: int) -> ViewPairs:
            return ViewPairs(*mixture.batch(seed, n, batch_size, indices))

        with prefetched(batch, step, threads=threads, ahead=2 * threads) as opened:
            yield iter(opened)

    known = [_IS_STATIC.get(name) for name, *_ in parts]
    return PairSource(
        description={"read": read, "sampling": dataclasses.asdict(sampling)},
        draw=None,
        held_out=lambda count: ViewPairs(*others.batch(HELD_OUT_SEED, 0, count)),
        is_static=False if False in known else None if None in known else True,
        notes=tuple(notes),
        redrawn=lambda: mixture.redrawn,
        batches=batches,
    )


def _part(text: str) -> tuple[str, str, float]:
    """NAME:FOLDER or NAME:FOLDER:WEIGHT."""
    name, colon, rest = text.strip().partition(":")
    if name not in READERS or not colon or not rest:
        raise ConfigError(f"--data: {text!r} is not NAME:FOLDER with one of the names {', '.join(sorted(READERS))}.")
    folder, colon, weight = rest.rpartition(":")
    if not colon:
        return name, rest, MONST3R_SHARES.get(name, 1.0)
    try:
        value = float(weight)
    except ValueError:
        return name, rest, MONST3R_SHARES.get(name, 1.0)  # a folder with a colon in its name
    if not flag_values.LEAST_SIZE <= value <= flag_values.MOST:
        bounds = f"{flag_values.LEAST_SIZE:g} to {flag_values.MOST}"
        raise ConfigError(f"--data: the weight of {text!r}: it must be a number from {bounds}.")
    return name, folder, value


def _fingerprint(dataset: Dataset) -> str:
    """Identifies a data set by its sequences' names and lengths, independent of its location."""
    names = sorted(f"{os.path.relpath(s.name, dataset.root)} {s.num_frames}" for s in dataset.sequences)
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()
