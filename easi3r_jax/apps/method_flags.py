"""The flags of the method, shared by the programs that run it."""

from __future__ import annotations

import math
from typing import Any, Generic, TypeVar

from easi3r_jax.apps import cli
from easi3r_jax.apps.given import NetworkFlags
from easi3r_jax.core import config as options
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.lens import MODELS, Lens
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.io import remote
from easi3r_jax.io.priors.lens import load_lens
from easi3r_jax.models import POLICIES, VGGT, DUSt3R
from easi3r_jax.weights.readout import load_readout

Known = TypeVar("Known", bound=NetworkFlags)


def checkpoint_flag(group: cli.Group):
    """`--checkpoint`, which `weights.load.load_model` takes."""
    return group.string(
        "checkpoint",
        "embedded",
        "Weights: a converted folder, a .pth file, a folder with model.safetensors, the address of one of these, a hub "
        "name (naver/..., Junyi42/...), or embedded, the small network that ships with the package.",
    )


def devices_flag(group: cli.Group):
    """`--devices`."""
    return group.integer("devices", 0, "Number of this machine's devices to use (0: all).", at_most=10_000)


def precision_flag(group: cli.Group, note: str = ""):
    """`--precision` of the networks, which `models.policy` takes."""
    return group.choice(
        "precision",
        "auto",
        ["auto", *POLICIES],
        "What the networks compute in: exact (float32), tf32 (products of factors rounded to 10 bits, on GPUs), bf16 "
        "(encoder and decoder in bfloat16, the rest as tf32), or auto (bf16 on GPUs and TPUs, exact on CPUs)." + note,
    )


def distortion_flag(group: cli.Group):
    """`--distortion`, which `lens_of` reads."""
    return group.string(
        "distortion",
        "",
        "The camera's lens, whose distortion is removed from the frames: MODEL:PARAMETERS as in COLMAP (for example "
        f"SIMPLE_RADIAL:1200,960,540,-0.1; of {', '.join(MODELS)}), COLMAP's cameras.txt, or a transforms.json. Its "
        "intrinsics are then known.",
    )


def lens_of(flag) -> Lens | None:
    """The lens of `--distortion`; None if it is not used.

    Raises:
      InputError: an unknown model, too few parameters, or a file that cannot be read.
    """
    return load_lens(remote.local(flag.value) if remote.is_address(flag.value) else flag.value) if flag.value else None


class SizeFlags:
    """Three flags for resizing frames to the network's size, added to a group of a program's flags."""

    def __init__(self, group: cli.Group):
        self.size = group.integer("size", 0, "Long side in pixels (0: the checkpoint's training size).", at_most=16384)
        self.crop = group.boolean("crop", True, "Crop to multiples of the patch size; --nocrop resizes to them.")
        self.square_ok = group.boolean("square_ok", False, "Keep square images square instead of cropping them to 4:3.")

    def frame_config(
        self, model: DUSt3R | VGGT, *, every: int = 1, fps: float = 0.0, first: int = 0, lens: Lens | None = None
    ) -> options.FrameConfig:
        """How frames are read: at the network's training size, unless --size is given.

        Raises:
          ConfigError: flags that have no effect on the frames of this network.
        """
        fit: Any = getattr(model.config, "fit", "long-side")
        if fit == "width" and not (self.crop.value and not self.square_ok.value):
            flag = "--square_ok" if self.crop.value else "--nocrop"
            raise ConfigError(
                f"{flag} has no effect with VGGT, whose frames get its training width, with tall ones cropped: omit it."
            )
        return options.FrameConfig(
            size=self.size.value or max(model.config.image_size),
            patch_size=model.config.patch_size,
            crop=self.crop.value,
            square_ok=self.square_ok.value,
            every=every,
            fps=fps,
            first=first,
            fit=fit,
            lens=lens,
        )


class MethodFlags(Generic[Known]):
    """Groups of a program's flags: pairs, motion, priors, optical flow, alignment.

    Args:
      flags: the program's.
      known: creates the groups for priors and flow: `GivenFlags`, or `NetworkFlags` for any number of clips.

    Attributes:
      FRAME_BY_FRAME, ALL_AT_ONCE: names of the flags that are used frame by frame, and by a network that sees all
        frames at once.
    """

    FRAME_BY_FRAME = ("mode", "shared_focal", "frame_batch", "clean_tolerance")
    ALL_AT_ONCE = ("motion", "reattention", "clusters", "kmeans_restarts", "kmeans_iterations", "otsu_classes")
    ALL_AT_ONCE += ("masks", "mask_dilation", "refine", "refine_checkpoint", "clean_tolerance")

    def __init__(self, flags: cli.Flags, known: type[Known]):
        pairs = flags.group("Pairs")
        self.graph = pairs.string(
            "graph",
            "swinstride-5-noncyclic",
            "Which frames are paired: complete, swin-K, swinstride-K, swin2stride-K, swinskip_start-K, logwin-K, "
            "oneref-I; windows are cyclic unless -noncyclic is appended.",
        )
        self.point_dtype = pairs.choice(
            "point_dtype",
            "float32",
            ["float32", "float16", "bfloat16"],
            "Number type of all pairs' point maps; the 16-bit types take half the memory.",
        )
        self.pair_batch = pairs.integer("pair_batch", 0, "Pairs decoded at a time (0: automatic).", at_least=0)
        self.frame_batch = pairs.integer("frame_batch", 0, "Frames encoded at a time (0: automatic).", at_least=0)

        motion = flags.group("Motion")
        self.motion = motion.choice(
            "motion",
            "attention",
            options.CUES,
            "Motion cue: attention (the read-out that the checkpoint carries, else the published formula), formula "
            "(Easi3R's, for every network), gram (VGGT4D's: similarities of queries and keys), rigid (point maps that "
            "no rigid motion aligns), match (matches that no camera explains), or none (plain DUSt3R / MonST3R).",
        )
        self.readout = motion.string(
            "readout", "", "File of `experiments.calibrate` that replaces the checkpoint's read-out of the attention."
        )
        self.reattention = motion.boolean(
            "reattention", True, "Mask dynamic regions inside the attention of a second pass."
        )
        self.clusters = motion.integer(
            "clusters", 64, "k-means clusters that smooth the motion score.", at_least=1, at_most=100_000
        )
        self.restarts = motion.integer(
            "kmeans_restarts", 4, "Starts of k-means; the best one is kept.", at_least=1, at_most=10_000
        )
        self.kmeans_iterations = motion.integer(
            "kmeans_iterations", 300, "Maximum number of iterations of each start.", at_least=1
        )
        self.otsu = motion.string(
            "otsu_classes", "2,3,4", "Class counts that multi-Otsu tries for the mask's threshold."
        )

        self.known: Known = known(flags)

        align = flags.group("Alignment")
        self.iterations = align.integer("iterations", 300, "Optimisation steps.", at_least=1)
        self.learning_rate = align.number(
            "learning_rate", 0.01, "Learning rate of the first step.", at_least=1e-9, at_most=10.0
        )
        self.learning_rate_min = align.number(
            "learning_rate_min", 0.001, "Learning rate of the last step.", at_most=10.0
        )
        self.schedule = align.choice("schedule", "linear", ["linear", "cosine"], "Learning rate schedule.")
        self.shared_focal = align.boolean("shared_focal", True, "Use one focal length for the whole clip.")
        self.smoothing = align.number(
            "smoothing_weight", 0.0, "Weight of the camera path's temporal smoothness.", at_least=0.0
        )
        self.translation = align.number(
            "translation_weight", 1.0, "Weight of translation within the smoothness.", at_least=0.0
        )
        self.flow_weight = align.number("flow_weight", 0.01, "Weight of the optical flow.", at_least=0.0)
        self.flow_start = align.number("flow_start", 0.1, "Fraction of the steps before flow is used.", at_most=1.0)
        self.match_weight = align.number(
            "match_weight", 0.0, "Weight of matches of descriptors; for MASt3R.", at_least=0.0
        )
        self.depth_weight = align.number(
            "depth_weight", 0.0, "Weight of staying close to the initial depth.", at_least=0.0
        )
        self.principal_point = align.boolean(
            "free_principal_point", False, "Also optimise each frame's principal point."
        )
        self.initialisation = align.choice(
            "initialisation",
            "spanning-tree",
            ["spanning-tree", "chain"],
            "Pairs along which the initial world is assembled: the most confident ones, or those of the nearest "
            "frames.",
        )
        self.min_confidence = align.number(
            "min_confidence", 3.0, "Points below this confidence are not used for initial poses."
        )
        self.pnp_iterations = align.integer(
            "pnp_iterations", 10, "RANSAC iterations of a frame's initial pose.", at_least=1
        )
        self.clean_tolerance = align.number(
            "clean_tolerance",
            0.001,
            "A point loses its confidence if it floats in front of other frames' depth by more than this fraction.",
            at_most=1.0,
        )
        self.keep_metres = align.boolean(
            "keep_metres", True, "Of a network whose points are in metres (MASt3R): keep the scene in metres."
        )

    def pipeline_config(self, seed: int, camera_weight: float = math.inf) -> options.PipelineConfig:
        """The options of every stage.

        Args:
          seed: for k-means and RANSAC.
          camera_weight: weight of known cameras; infinite: they are held fixed.

        Raises:
          ConfigError: a value outside its range.
        """
        return options.PipelineConfig(
            graph=self.graph.value,
            cue=self.motion.value,
            reattention=self.reattention.value,
            masks=self.known.mask_sources()[0],
            mask_dilation=self.known.dilation.value,
            point_dtype=self.point_dtype.value,
            pair_batch=self.pair_batch.value,
            frame_batch=self.frame_batch.value,
            seed=seed,
            segmentation=options.SegmentationConfig(
                num_clusters=self.clusters.value,
                restarts=self.restarts.value,
                kmeans_iterations=self.kmeans_iterations.value,
                otsu_classes=self._otsu_classes(),
            ),
            alignment=options.AlignConfig(
                iterations=self.iterations.value,
                learning_rate=self.learning_rate.value,
                learning_rate_min=self.learning_rate_min.value,
                schedule=self.schedule.value,
                shared_focal=self.shared_focal.value,
                smoothing_weight=self.smoothing.value,
                translation_weight=self.translation.value,
                flow_weight=self.flow_weight.value,
                flow_start=self.flow_start.value,
                match_weight=self.match_weight.value,
                depth_weight=self.depth_weight.value,
                free_principal_point=self.principal_point.value,
                camera_weight=camera_weight,
                initialisation=self.initialisation.value,
                min_confidence=self.min_confidence.value,
                pnp_iterations=self.pnp_iterations.value,
                clean_tolerance=self.clean_tolerance.value,
                keep_metres=self.keep_metres.value,
            ),
        )

    @staticmethod
    def check_used(what: str, changed: list[str], used: tuple[str, ...]) -> None:
        """Refuses flags that have no effect.

        Args:
          what: what does not use them.
          changed: flags of the method that were changed, as `--name=value`.
          used: names of those that are used.

        Raises:
          ConfigError: one of these.
        """
        harmless = ("--flow=none", "--masks=none", "--motion=none")
        unused = [flag for flag in changed if flag[2:].split("=")[0] not in used and flag not in harmless]
        if unused:
            raise ConfigError(f"{what} does not use {', '.join(unused)}: omit it.")

    def with_readout(self, model: DUSt3R | VGGT) -> DUSt3R | VGGT:
        """The network with the read-out of --readout, if given.

        Raises:
          CheckpointError: a file that cannot be read, or is no read-out.
          ConfigError: a read-out of another network.
        """
        if isinstance(model, VGGT) or not self.readout.value:
            return model
        return model.with_readout(load_readout(remote.local(self.readout.value)))

    def cue_line(self, model: DUSt3R | VGGT) -> str:
        """One line that says how the attention is read; nothing for other cues."""
        if self.motion.value != "attention":
            return ""
        if isinstance(model, VGGT):
            return "  Motion: the similarity of queries and keys to those of other frames (VGGT4D)."
        if model.readout is None:
            return "  Motion: the attention, by the published formula."
        return f"  Motion: the attention, by the read-out of {self.readout.value or 'the checkpoint'}."

    def check(self) -> None:
        """Refuses options that are wrong for every clip.

        Raises:
          ConfigError: an unknown pair graph, refinement without masks, or a read-out that would not be used.
          CheckpointError: a file that is no read-out.
        """
        if self.readout.value:
            if self.motion.value != "attention":
                raise ConfigError(f"--readout requires --motion=attention, not --motion={self.motion.value}.")
            load_readout(remote.local(self.readout.value))
        self.known.check_refine(motion=self.motion.value != "none")
        if not self.graph.value.startswith("oneref"):  # its reference may be any frame
            make_edges(2, self.graph.value)

    def _otsu_classes(self) -> tuple[int, ...]:
        """`--otsu_classes` as numbers."""
        words = self.otsu.value.split(",")
        if not set(words) <= {"2", "3", "4"}:
            raise ConfigError(f"--otsu_classes={self.otsu.value}: it must be some of 2, 3 and 4, separated by commas.")
        return tuple(int(word) for word in words)
