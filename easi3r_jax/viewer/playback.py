"""The player's state and what it displays: a pure state machine."""

from __future__ import annotations

import dataclasses

from easi3r_jax.io.export.pointcloud import MIN_CONFIDENCE

#: Which moving points are shown: those of the current frame, also those of the last frames, or none.
MOVING = ("this frame", "trail", "hidden")


@dataclasses.dataclass(frozen=True)
class Playback:
    """A clip that is played in a loop.

    Attributes:
      num_frames: at least 1.
      frame: number of the current frame.
      playing: False while paused.
      rate: frames of the clip per second.
      stride: every n-th frame is shown.
      pending: time that has passed since the current frame was due, in frames: a fraction of one.
    """

    num_frames: int
    frame: int = 0
    playing: bool = False
    rate: float = 10.0
    stride: int = 1
    pending: float = 0.0

    def toggled(self) -> Playback:
        """Playing if paused, paused if playing."""
        return dataclasses.replace(self, playing=not self.playing, pending=0.0)

    def at_frame(self, frame: int) -> Playback:
        """At another frame, clamped to the clip."""
        return dataclasses.replace(self, frame=min(max(frame, 0), self.num_frames - 1), pending=0.0)

    def stepped(self, steps: int) -> Playback:
        """Paused, `steps` strides forward, or backward if negative; wraps around."""
        return dataclasses.replace(self, frame=self._moved(steps), playing=False, pending=0.0)

    def ticked(self, seconds: float) -> Playback:
        """After some time has passed. Frames that are overdue are skipped, so that playback keeps its rate."""
        if not self.playing:
            return self
        pending = self.pending + max(seconds, 0.0) * self.rate
        steps = int(pending)
        return dataclasses.replace(self, frame=self._moved(steps) if steps else self.frame, pending=pending - steps)

    def until_next(self) -> float | None:
        """Seconds until the next frame is due; None while paused."""
        return (1.0 - self.pending) / self.rate if self.playing else None

    def coming(self, count: int) -> list[int]:
        """The next frames, at most `count`, without repeats."""
        positions = -(-self.num_frames // self.stride)
        return [self._moved(step) for step in range(1, min(count, positions - 1) + 1)]

    def _moved(self, steps: int) -> int:
        """The frame `steps` strides on, among the multiples of the stride; wraps around."""
        positions = -(-self.num_frames // self.stride)
        return (self.frame // self.stride + steps) % positions * self.stride


@dataclasses.dataclass(frozen=True)
class Look:
    """How points are drawn.

    Attributes:
      color: one of `colors.CHOICES`.
      confidence: static points below it are hidden.
      size: diameter of points, in pixel widths at the clip's median depth. There, discs touch at 1 and leave no gaps
        at 2.
      fraction: of all points that is shown, in (0, 1].
    """

    color: str = "RGB"
    confidence: float = MIN_CONFIDENCE
    size: float = 2.0
    fraction: float = 1.0


@dataclasses.dataclass(frozen=True)
class View:
    """Everything that the panel sets.

    Attributes:
      playback: the player's state.
      look: how points are drawn.
      moving: one of `MOVING`.
      trail: number of frames before the current one whose moving points a trail shows.
      background: whether static points are shown.
      cameras: whether the camera path and the cameras on it are shown.
      image: whether the current camera is shown with its image.
      follow: whether browsers look through the current camera.
      recording_camera: whether a video is being recorded through the current camera.
    """

    playback: Playback
    look: Look = Look()
    moving: str = "this frame"
    trail: int = 8
    background: bool = True
    cameras: bool = True
    image: bool = True
    follow: bool = False
    recording_camera: bool = False

    @property
    def shows_image(self) -> bool:
        """Whether the current camera is drawn with its image. Seen through that camera, it would hide the points."""
        return self.image and not self.follow and not self.recording_camera

    def resumed(self, before: View) -> View:
        """The view after a recording: at the frame where it was `before`, and playing if it was playing."""
        playback = dataclasses.replace(self.playback.at_frame(before.playback.frame), playing=before.playback.playing)
        return dataclasses.replace(self, playback=playback, recording_camera=False)

    def moving_frames(self) -> list[int]:
        """The frames whose moving points are shown, spaced by the stride, the current one last."""
        if self.moving == "hidden":
            return []
        if self.moving == "this frame":
            return [self.playback.frame]
        first = max(0, self.playback.frame - self.trail * self.playback.stride)
        return list(range(self.playback.frame, first - 1, -self.playback.stride))[::-1]
