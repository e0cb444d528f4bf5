"""Where the player stands and what is to be seen: a pure state machine."""

from __future__ import annotations

import dataclasses

from easi3r_jax.io.export.pointcloud import MIN_CONFIDENCE

#: What is shown of the things that move: those of the frame, of the last frames too, or none.
MOVING = ("this frame", "trail", "hidden")


@dataclasses.dataclass(frozen=True)
class Playback:
    """A clip that is played in a loop.

    Attributes:
      num_frames: at least 1.
      frame: number of the frame that is shown.
      playing: whether time goes on.
      rate: frames shown per second.
      stride: every so many-th frame is shown.
      owed: frames, a fraction of one, by which time is ahead of what is shown.
    """

    num_frames: int
    frame: int = 0
    playing: bool = False
    rate: float = 10.0
    stride: int = 1
    owed: float = 0.0

    def toggled(self) -> Playback:
        """Playing instead of paused, and the other way round."""
        return dataclasses.replace(self, playing=not self.playing, owed=0.0)

    def sought(self, frame: int) -> Playback:
        """At another frame; one beyond an end is that end."""
        return dataclasses.replace(self, frame=min(max(frame, 0), self.num_frames - 1), owed=0.0)

    def stepped(self, steps: int) -> Playback:
        """Paused, `steps` strides further, or back; from one end to the other."""
        return dataclasses.replace(self, frame=self._moved(steps), playing=False, owed=0.0)

    def ticked(self, seconds: float) -> Playback:
        """After some time. Frames whose time has passed are left out, so that the clip keeps its pace."""
        if not self.playing:
            return self
        owed = self.owed + max(seconds, 0.0) * self.rate
        steps = int(owed)
        return dataclasses.replace(self, frame=self._moved(steps) if steps else self.frame, owed=owed - steps)

    def until_next(self) -> float | None:
        """Seconds until another frame is due; None while paused."""
        return (1.0 - self.owed) / self.rate if self.playing else None

    def coming(self, count: int) -> list[int]:
        """The next frames, at most `count`, and none twice."""
        positions = -(-self.num_frames // self.stride)
        return [self._moved(step) for step in range(1, min(count, positions - 1) + 1)]

    def _moved(self, steps: int) -> int:
        """The frame `steps` strides further, on the grid of frames that the stride shows."""
        positions = -(-self.num_frames // self.stride)
        return (self.frame // self.stride + steps) % positions * self.stride


@dataclasses.dataclass(frozen=True)
class Look:
    """How points are drawn.

    Attributes:
      color: one of `colors.CHOICES`.
      confidence: static points below it are left out.
      size: of points, in widths of a pixel at the clip's middle depth. At 1 discs touch; at 2 they leave no gaps there.
      share: of all points, in (0, 1].
    """

    color: str = "RGB"
    confidence: float = MIN_CONFIDENCE
    size: float = 2.0
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class View:
    """All that the panel sets.

    Attributes:
      playback: where the player stands.
      look: how points are drawn.
      moving: one of `MOVING`.
      trail: frames before the current one whose moving points a trail shows.
      background, cameras, image: whether what stands still, the path with all cameras, the current camera with its
        image are shown.
      follow: browsers look through the current camera.
      filmed: a video is taken through the current camera.
    """

    playback: Playback
    look: Look = Look()
    moving: str = "this frame"
    trail: int = 8
    background: bool = True
    cameras: bool = True
    image: bool = True
    follow: bool = False
    filmed: bool = False

    @property
    def shows_image(self) -> bool:
        """Whether the current camera is drawn with its image: to who looks through it, it would hide the points."""
        return self.image and not self.follow and not self.filmed

    def resumed(self, before: View) -> View:
        """After a video: where the player was, going on if it did."""
        playback = dataclasses.replace(self.playback.sought(before.playback.frame), playing=before.playback.playing)
        return dataclasses.replace(self, playback=playback, filmed=False)

    def moving_frames(self) -> list[int]:
        """The frames whose moving points are shown: on the grid of the stride, the current one last."""
        if self.moving == "hidden":
            return []
        if self.moving == "this frame":
            return [self.playback.frame]
        first = max(0, self.playback.frame - self.trail * self.playback.stride)
        return list(range(self.playback.frame, first - 1, -self.playback.stride))[::-1]
