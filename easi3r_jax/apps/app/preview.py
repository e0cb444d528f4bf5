"""What will be used of an upload: frames as they are read, before anything is reconstructed."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from easi3r_jax.apps.app import options
from easi3r_jax.apps.app.job import Jobs
from easi3r_jax.apps.app.uploads import Names, linked_clip, user_errors
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.video import load_frames

# Frames shown, and their height in pixels.
_SHOWN, _HEIGHT = 6, 96
# A preview takes at most so long, and waits at most so long for another one.
_MOST_SECONDS = 20.0
_ONE_AT_A_TIME = threading.Lock()


def preview(jobs: Jobs, uploads: Sequence[str], checkpoint: str, values: Mapping[str, object]) -> str:
    """HTML: how many frames will be used, and some of them.

    Raises:
      UserError: an upload that cannot be read, or invalid options.
    """
    with _turn(), jobs.store.job() as folder:
        names = Names(folder)
        with user_errors(names):
            wanted = ("fps", "every", "first", "size")
            flags = options.checked({name: values[name] for name in wanted if name in values})
            model, _ = jobs.networks.load(checkpoint, "", Stages(quiet=True))
            clip = linked_clip(uploads, folder, names, jobs.limits.megabytes)
            limit, first = jobs.limits.frames, int(str(flags.pop("first", 0)))
            if flags.get("size") == 0:
                del flags["size"]
            cut = min(first or limit + 1, limit + 1)  # the rest need not be read
            frames = load_frames(clip, FrameConfig.for_model(model, first=cut, **flags), _Limit())  # pyright: ignore
    return _described(frames, limit)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One preview at a time."""
    if not _ONE_AT_A_TIME.acquire(timeout=_MOST_SECONDS):
        raise InputError("The server is busy: there is no preview for now.")
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


class _Limit:
    """Progress that ends a preview which takes too long."""

    def __init__(self):
        self._end = time.monotonic() + _MOST_SECONDS

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if time.monotonic() > self._end:
            raise InputError("Reading the clip takes long: there is no preview, but Reconstruct reads it.")


def _described(frames: Frames, limit: int) -> str:
    count, height, width = frames.rgb.shape[:3]
    if count > limit:
        text = f"More than {limit} frames, which is the limit: take fewer under Options, Frames."
        return f'<p class="warn">{html.escape(text)}</p>'
    text = f"{count} frame{'s' * (count != 1)} will be used, {width} × {height} pixels"
    if frames.source_size is not None:
        rows, columns = (int(n) for n in frames.source_size)
        text += f" (of {columns} × {rows})"
    text += "."
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SHOWN)).round().astype(int))
    pictures = [Image.fromarray(np.asarray(frames.rgb[n])) for n in chosen]
    file = io.BytesIO()
    small = [p.resize((max(1, round(_HEIGHT * width / height)), _HEIGHT), Image.Resampling.LANCZOS) for p in pictures]
    strip = Image.new("RGB", (sum(p.width + 4 for p in small) - 4, _HEIGHT), "white")
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width + 4
    strip.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    listed = ", ".join(str(n + 1) for n in chosen)
    return f'<p>{text}</p><img class="strip" alt="Frames {listed}" src="data:image/jpeg;base64,{data}">'
