"""Priors given by the user: flags for optical flow, masks and cameras, read into a `Given`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax.numpy as jnp
from jax.tree_util import Partial

from easi3r_jax.apps import cli
from easi3r_jax.core.config import MASK_SOURCES
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames, Given, Progress
from easi3r_jax.inference.clip import FlowSource
from easi3r_jax.inference.dense_flow import dense_flow
from easi3r_jax.inference.flow import network_flow
from easi3r_jax.inference.refine import ReprojectionRefiner, sam2
from easi3r_jax.io import remote
from easi3r_jax.io.priors.cameras import load_cameras
from easi3r_jax.io.priors.flow import FlowFolder
from easi3r_jax.io.priors.masks import load_masks
from easi3r_jax.io.video.folders import list_images
from easi3r_jax.models import FlowNetwork
from easi3r_jax.weights.load import load_flow_model_and_metadata

NETWORKS = ("sea-raft", "raft", "raft-small")


class NetworkFlags:
    """Flags for masks, their refinement, and optical flow, all computed by networks: for any number of clips."""

    _MASKS = "motion (what --motion finds), flow (optical flow that the camera does not explain), or none."
    _FLOW = (
        "Where optical flow comes from: auto (the network of --flow_checkpoint if there is one, else dis), dis (dense "
        "inverse search, without weights), sea-raft, raft or raft-small (of --flow_checkpoint), or none."
    )
    _TAKES_FOLDERS = False

    def __init__(self, flags: cli.Flags):
        self._known = group = flags.group("Priors")
        self.masks = group.string(
            "masks", "motion", f"Dynamic regions in the alignment and the result, joined by +: {self._MASKS}"
        )
        self.dilation = group.integer("mask_dilation", 0, "Pixels by which the masks are dilated.", at_most=10_000)
        self.refine = group.choice(
            "refine",
            "none",
            ["none", "sam2", "reprojection"],
            "Refine the masks before dilation: sam2 tracks them through the video with SAM 2 (needs "
            "pip install 'easi3r_jax[sam2]'), which adds regions; reprojection drops regions that other frames see "
            "where a static scene would be, after a first alignment (needs no weights).",
        )
        self.refine_checkpoint = group.string(
            "refine_checkpoint",
            sam2.RELEASED,
            "For --refine=sam2, SAM 2's weights: a name on the Hugging Face hub, or a folder with config.json and "
            "model.safetensors.",
        )
        self._optical_flow = group = flags.group("Optical flow")
        self.flow = group.string("flow", "auto", self._FLOW)
        self.flow_checkpoint = group.string(
            "flow_checkpoint",
            "",
            "Weights of the flow network: a .pth file, a safetensors folder, or a converted one.",
        )

    def mask_sources(self) -> tuple[tuple[str, ...], str | None]:
        """The sources in `--masks`, for `PipelineConfig.masks`, and the folder of given masks, as typed.

        Raises:
          ConfigError: more than one folder, or an empty name.
        """
        value = self.masks.value
        words = [value] if pathlib.Path(value).expanduser().is_dir() else value.split("+")
        folders = [word for word in words if word not in (*MASK_SOURCES, "none")]
        if len(folders) > self._TAKES_FOLDERS or {"", "given"} & set(words) or ("none" in words and len(words) > 1):
            some = "motion, flow and one folder" if self._TAKES_FOLDERS else "motion and flow"
            raise ConfigError(f"--masks={value}: it must be none, or some of {some}, joined by +.")
        sources = tuple(word for word in words if word in ("motion", "flow")) + ("given",) * len(folders)
        return sources, folders[0] if folders else None

    def check_refine(self, motion: bool) -> None:
        """Refuses refinement without masks, and refinement weights without refinement.

        Args:
          motion: whether motion is detected.

        Raises:
          ConfigError: one of these.
        """
        if self.refine_checkpoint.present and self.refine.value != "sam2":
            raise ConfigError("--refine_checkpoint requires --refine=sam2: add it.")
        if self.refine.value != "none" and not set(self.mask_sources()[0]) - (set() if motion else {"motion"}):
            without = "" if motion else "--motion=none "
            raise ConfigError(
                f"--refine={self.refine.value}: with {without}--masks={self.masks.value} there are no masks to refine."
            )

    def refiner(self, progress: Progress) -> sam2.Sam2Refiner | ReprojectionRefiner | None:
        """The refiner that `--refine` names, with its network if it has one.

        Raises:
          ConfigError: libraries that it needs are missing.
          CheckpointError: weights that cannot be read or downloaded.
        """
        if self.refine.value == "none":
            return None
        if self.refine.value == "reprojection":
            return ReprojectionRefiner()
        return sam2.Sam2Refiner(self.refine_checkpoint.value, progress=progress)

    def flow_source(
        self, precision: str, place: Callable[[FlowNetwork], FlowNetwork] = lambda network: network
    ) -> tuple[FlowSource | pathlib.Path | None, dict[str, Any]]:
        """The source of optical flow, or the folder that provides it, and its description; None: no flow.

        Args:
          precision: as `models.policy` takes it.
          place: puts a network on the devices.

        Raises:
          ConfigError: weights without a network, or of another network, or a network without weights.
          CheckpointError: weights that cannot be read.
          InputError: neither a source's name nor a folder.
        """
        name, checkpoint = self.flow.value, self.flow_checkpoint.value
        names = ", ".join(("auto", "dis", *NETWORKS))
        if checkpoint:
            if name not in ("auto", *NETWORKS):
                raise ConfigError(f"--flow_checkpoint requires --flow=auto or {' or '.join(NETWORKS)}, not {name}.")
            network, metadata = load_flow_model_and_metadata(checkpoint, precision)
            found = network.config.network
            if name not in ("auto", found):
                raise ConfigError(f"--flow={name}, but {checkpoint} has weights of {found}: use --flow={found}.")
            return Partial(network_flow, place(network)), {"name": found, **metadata}
        if name in NETWORKS:
            raise ConfigError(f"--flow={name} needs weights: --flow_checkpoint=WEIGHTS, or --flow=dis without weights.")
        if name in ("auto", "dis"):
            return dense_flow, {"name": "dis", "source_name": f"dense inverse search of OpenCV {cv2.__version__}"}
        if name == "none":
            self._without_flow()
            return None, {}
        if not self._TAKES_FOLDERS:
            raise ConfigError(f"--flow={name}: it must be {names} or none.")
        folder = pathlib.Path(remote.local(name)).expanduser()
        if not folder.is_dir():
            raise InputError(f"--flow={name}: it is neither {names}, none, nor a folder.")
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
        return folder, {"name": "folder", "folder": os.fspath(folder.absolute()), "files": files}

    def chosen_flow(self, description: Mapping[str, Any]) -> str:
        """One line on where optical flow comes from if --flow=auto chose it, else nothing."""
        if self.flow.value != "auto" or not description:
            return ""
        if description["name"] == "dis":
            return "  Optical flow: dense inverse search (--flow=dis); a network's weights: --flow_checkpoint."
        return f"  Optical flow: {description['name']} of {self.flow_checkpoint.value}."

    def _without_flow(self) -> None:
        """Refuses options that need flow."""
        if "flow" in self.mask_sources()[0]:
            raise ConfigError("--masks=flow needs optical flow: omit --flow=none.")


class GivenFlags(NetworkFlags):
    """`NetworkFlags`, and files that belong to one clip: masks, optical flow, cameras."""

    _MASKS = (
        "motion (what --motion finds), flow (optical flow that the camera does not explain), a folder with your own "
        "PNGs, or none."
    )
    _FLOW = (
        "Where optical flow comes from: auto (the network of --flow_checkpoint if there is one, else dis), dis (dense "
        "inverse search, without weights), sea-raft, raft or raft-small (of --flow_checkpoint), none, or a folder of "
        "IIIII_JJJJJ.flo files, written by --save_flow or your own."
    )
    _TAKES_FOLDERS = True

    def __init__(self, flags: cli.Flags):
        super().__init__(flags)
        self.intrinsics = self._known.string(
            "intrinsics",
            "",
            "Text file with fx fy cx cy or a 3x3 matrix (one for all frames, or a line for each), or a "
            "transforms.json; in pixels of the original video.",
        )
        self.poses = self._known.string(
            "poses",
            "",
            "Camera poses of some or all frames: a TUM trajectory, a transforms.json, or an .npz with world_from_cam. "
            "The result is in their world and units.",
        )
        self.quaternion = self._known.string(
            "quaternion", "auto", "Order of quaternions in --poses: xyzw, wxyz, or auto (wxyz if pred_traj.txt)."
        )
        self.camera_weight = self._known.number(
            "camera_weight", 0.0, "Weight of known cameras as a prior; 0: they are held fixed.", at_least=0.0
        )
        self.save_flow = self._optical_flow.boolean("save_flow", False, "Save the flow in the result's folder flow/.")

    def of_one_clip(self) -> list[str]:
        """Names of the flags in use whose files belong to one clip."""
        folders = {"masks": self.mask_sources()[1], "flow": pathlib.Path(self.flow.value).expanduser().is_dir()}
        given = {"intrinsics": self.intrinsics.value, "poses": self.poses.value}
        return [name for name, value in (given | folders).items() if value]

    def _without_flow(self) -> None:
        super()._without_flow()
        if self.save_flow.value:
            raise ConfigError("--save_flow needs optical flow: omit --flow=none.")

    def load(self, frames: Frames, source: pathlib.Path, *, stopped_early: bool, aligned: bool) -> Given:
        """Reads the masks and cameras that the flags name.

        Args:
          frames: the clip.
          source: video or folder of the frames.
          stopped_early: the source has more frames than were read.
          aligned: pairs will be aligned, which takes the focal length of a lens; other ways have no use for it.

        Raises:
          InputError: files that do not fit the clip.
        """
        names = tuple(path.name for path in list_images(source)) if source.is_dir() else ()
        folder = self.mask_sources()[1]
        masks = None
        if folder is not None:
            masks = jnp.asarray(
                load_masks(pathlib.Path(remote.local(folder)).expanduser(), frames, stopped_early, names)
            )
        cameras = None
        if self.intrinsics.value and frames.lens is not None:
            raise ConfigError("--distortion has the camera's intrinsics: omit --intrinsics.")
        if self.intrinsics.value or self.poses.value or (aligned and frames.lens is not None):
            intrinsics, poses = (remote.local(flag.value) or None for flag in (self.intrinsics, self.poses))
            cameras = load_cameras(frames, intrinsics, poses, stopped_early, names, self.quaternion.value)
        return Given(masks=masks, cameras=cameras)


def for_clip(source: FlowSource | pathlib.Path | None, frames: Frames) -> FlowSource | None:
    """The source of a clip's optical flow: a folder's files are numbered by the clip's frames."""
    return FlowFolder(source, frames) if isinstance(source, pathlib.Path) else source
