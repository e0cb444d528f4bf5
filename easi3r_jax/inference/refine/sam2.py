"""SAM 2 (arXiv 2408.00714) as a mask refiner, using the `transformers` library on PyTorch.

The library's processor is not used, since it needs a torchvision that matches PyTorch's build. It resizes frames and
masks to the network's square and normalises colours; a few lines here do that, frame by frame on demand.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from safetensors import safe_open

from easi3r_jax.core.arrays import Bool, UInt8
from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.inference.refine.alternate import alternate
from easi3r_jax.weights.hub import fetch, is_name, naming_damaged

#: The largest of the released networks.
RELEASED = "facebook/sam2.1-hiera-large"
_CONFIG, _WEIGHTS, _MODEL_TYPE = "config.json", "model.safetensors", "sam2_video"
# Colour normalisation of the training images (ImageNet's).
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OBJECT = 1  # the only object: all dynamic regions together


class Sam2Refiner:
    """A `MaskRefiner` that tracks masks through the video with SAM 2, using the scheme of `alternate`.

    All dynamic regions are one object. Between calls the network is in host memory; the video's frames always are.
    Beside the network, a call needs about 4.5 MB of host memory and 1.6 MB of device memory per frame of the clip.

    Args:
      checkpoint: folder with config.json and model.safetensors in the format of `transformers`, or a name on the
        Hugging Face hub.
      device: PyTorch's name of the device, e.g. "cpu"; None: the GPU if PyTorch has one.
      most_prompts: number of nearest prompted frames that a frame attends to; 0: all, as in the released program. Time
        and memory per frame grow with it.
      progress: called during a download.

    Attributes:
      metadata: source_name, source_sha256 of the weights, versions of the libraries.

    Raises:
      CheckpointError: not a SAM 2 video network, a damaged or incomplete one, or one that cannot be downloaded.
      ConfigError: PyTorch, `transformers` or the device is missing; an invalid number of prompts.
      OutputError: a download that cannot be stored.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] = RELEASED,
        *,
        device: str | None = None,
        most_prompts: int = 0,
        progress: Progress = silent,
    ):
        if most_prompts < 0 or most_prompts == 1:
            raise ConfigError(f"most_prompts must be 0 (all) or at least 2 (one on each side), got {most_prompts}.")
        torch, transformers = _libraries()
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._device = torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # no such device; PyTorch without CUDA
            raise ConfigError(f"PyTorch has no device {name!r} here: {_first_line(error)}") from error
        folder = _folder(checkpoint, progress)
        with naming_damaged(folder, (_CONFIG, _WEIGHTS)):
            self._model = _load(folder)
        self._model.config.max_cond_frame_num = most_prompts or -1
        self.metadata = {
            "source_name": os.fspath(checkpoint),
            "source_sha256": _sha256(folder / _WEIGHTS),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def __call__(
        self, rgb: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"], /, *, progress: Progress = silent
    ) -> Bool[np.ndarray, "T H W"]:
        """Refines the masks of a clip.

        Args:
          rgb: (T, H, W, 3) uint8.
          masks: (T, H, W) bool, True where the frame is dynamic.
          progress: called while it works.

        Returns:
          (T, H, W) bool, union of the input and the tracked masks.

        Raises:
          ConfigError: the device has too little memory.
        """
        torch, _ = _libraries()
        try:
            self._model.to(self._device)
            return alternate(lambda: _Sam2Tracker(self._model, rgb, self._device), masks, progress=progress)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "The device has too little memory for SAM 2: leave it more "
                "(XLA_PYTHON_CLIENT_MEM_FRACTION=0.5), or use windows of fewer frames."
            ) from error
        finally:
            self._model.to("cpu")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # JAX cannot use memory cached by PyTorch


class _Sam2Tracker:
    """SAM 2 and its memory of one video: a `Tracker`."""

    def __init__(self, model: Any, rgb: np.ndarray, device: Any):
        torch, transformers = _libraries()
        self._model = model
        self._size = model.config.image_size
        self._session = transformers.Sam2VideoInferenceSession(
            video_height=rgb.shape[1],
            video_width=rgb.shape[2],
            inference_device=device,
            inference_state_device="cpu",
            video_storage_device="cpu",
            dtype=torch.float32,
        )
        self._session.processed_frames = _PreparedFrames(rgb, self._size)
        self._frame_size = rgb.shape[1:3]

    def prompt(self, frame: int, mask: np.ndarray) -> None:
        number = self._session.obj_id_to_idx(_OBJECT)
        self._session.add_mask_inputs(number, frame, _resized(mask[None], self._size)[None] >= 0.5)
        self._session.obj_with_new_inputs = [_OBJECT]
        self._model(self._session, frame_idx=frame)  # stores its output in the session
        self._session.remove_mask_inputs(number, frame)  # large, and no longer needed

    def follow(self, frame: int, *, reverse: bool) -> np.ndarray:
        torch, _ = _libraries()
        logits = self._model(self._session, frame_idx=frame, reverse=reverse).pred_masks
        logits = torch.nn.functional.interpolate(logits, self._frame_size, mode="bilinear", align_corners=False)
        return (logits[0, 0] > 0).cpu().numpy()


class _PreparedFrames:
    """Frames in the network's format, by number; each is prepared on demand, as they are large."""

    def __init__(self, rgb: np.ndarray, size: int):
        torch, _ = _libraries()
        self._rgb, self._size = rgb, size
        self._mean, self._deviation = (torch.tensor(x)[:, None, None] for x in (_MEAN, _DEVIATION))

    def __len__(self) -> int:
        return len(self._rgb)

    def __getitem__(self, frame: int) -> Any:
        """(3, size, size) float32, normalised."""
        square = _resized(self._rgb[frame].transpose(2, 0, 1), self._size)
        return (square / 255 - self._mean) / self._deviation


def _resized(image: np.ndarray, size: int) -> Any:
    """(C, H, W) of any type to a square (C, size, size) float32: bilinear, antialiased when shrinking."""
    torch, _ = _libraries()
    values = torch.tensor(image, dtype=torch.float32)[None]
    return torch.nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)[0]


def _libraries() -> tuple[Any, Any]:
    """PyTorch and `transformers`, which only this refiner needs."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
        from transformers import Sam2VideoModel  # noqa: F401 # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: a CUDA library that PyTorch is linked to
        raise ConfigError(
            "Refinement by SAM 2 needs PyTorch and a recent transformers: pip install 'easi3r_jax[sam2]' "
            f"({_first_line(error)})."
        ) from error
    return torch, transformers


def _folder(checkpoint: str | os.PathLike[str], progress: Progress) -> pathlib.Path:
    """The checkpoint's folder: local, or downloaded from the hub."""
    folder = pathlib.Path(checkpoint).expanduser()
    if not folder.exists() and is_name(os.fspath(checkpoint)) and not folder.parent.is_dir():
        return fetch(os.fspath(checkpoint), (_CONFIG, _WEIGHTS), "SAM 2", progress)
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"There is no {' and no '.join(missing)} in {folder}: give a folder with SAM 2's {_CONFIG} and {_WEIGHTS} "
            f"in the format of transformers, or a hub name such as {RELEASED}."
        )
    return folder


def _load(folder: pathlib.Path) -> Any:
    """The complete network: float32, in host memory."""
    torch, transformers = _libraries()
    try:
        kind = json.loads((folder / _CONFIG).read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / _CONFIG} cannot be read as a network's configuration.") from error
    if kind != _MODEL_TYPE:  # the library would load it anyway
        raise CheckpointError(f"{folder} holds a network of type {kind!r}, not {_MODEL_TYPE!r}, SAM 2's for videos.")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # loading takes a second
    try:
        model, found = transformers.Sam2VideoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # from the library, safetensors or the file system
        raise CheckpointError(f"{folder} cannot be loaded as SAM 2: {_first_line(error)}") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    _check_tensors(folder, model, found)
    return model


def _check_tensors(folder: pathlib.Path, model: Any, found: dict[str, Any]) -> None:
    """Refuses weights that are not exactly the network's, as for our own networks: all reasons in one line.

    Raises:
      CheckpointError: tensors are missing (they would be random), unknown (they would be dropped: SAM 2.1's in a
        configuration of SAM 2.0), of other shapes, or not finite.
    """
    torch, _ = _libraries()
    tensors = model.state_dict()
    with safe_open(folder / _WEIGHTS, framework="numpy") as file:  # the library does not report all that it drops
        unknown = set(file.keys()) - set(tensors)
    infinite = [
        name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    wrong = {
        "it lacks {} of SAM 2's tensors": found.get("missing_keys"),
        "{} of its tensors are not of this configuration": unknown | set(found.get("unexpected_keys") or ()),
        "{} have other shapes": [name for name, *_ in found.get("mismatched_keys") or ()],
        "{} have NaN or infinite numbers": infinite,
    }
    reasons = [f"{text.format(len(names))}, e.g. {min(names)}" for text, names in wrong.items() if names]
    if reasons:
        raise CheckpointError(
            f"Cannot use {folder / _WEIGHTS}: {'; '.join(reasons)}. It is of another network than {_CONFIG} says, or "
            "damaged."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
