"""The viewer: a viser server with the scenes, a panel, and one thread that shows what the panel says.

The panel's callbacks, which run in viser's thread, only replace the `View`. The display thread reads it, and it alone
changes the scenes. So several browsers at once, or one that closes during an update, cannot leave anything half done.
Browsers share the view (each has its own camera), and viser sends a new browser everything it has missed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Reconstruction
from easi3r_jax.viewer.clouds import preview_cloud, side_by_side, static_cloud, unit_depth_placement
from easi3r_jax.viewer.colors import measure
from easi3r_jax.viewer.listening import check_address, port_in_use
from easi3r_jax.viewer.nodes import SceneNodes, Shown
from easi3r_jax.viewer.panel import Panel
from easi3r_jax.viewer.paths import fitting_fov, quaternion
from easi3r_jax.viewer.playback import Playback, View
from easi3r_jax.viewer.ruler import Ruler
from easi3r_jax.viewer.surroundings import NODES, FirstView, add_surroundings, prepare_page
from easi3r_jax.viewer.viser_import import import_viser

if TYPE_CHECKING:
    import viser

# Frames that are sent before they are due. Sending all of them at once would block a slow connection.
_PREFETCH_FRAMES = 8
# Updates of the panel's images per second.
_PICTURE_RATE = 8.0
# Seconds between two steps of the display thread while it has work, and before a frame is requested again.
_STEP_PAUSE, _RETRY_AFTER = 0.02, 0.5


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits on the number of points.

    Attributes:
      static: of a background.
      moving: dynamic points, all frames together.
    """

    static: int = 500_000
    moving: int = 4_000_000

    def per_frame(self, num_frames: int) -> int:
        """Limit on the dynamic points of one frame."""
        return max(1, self.moving // num_frames)


def scenes_shown(saved: Sequence[Reconstruction]) -> list[Shown]:
    """One scene, or two side by side.

    Raises:
      InputError: two results of different clips.
    """
    first, *others = saved
    placements = [unit_depth_placement(first.scene)]
    for other in others:
        count, expected = len(other.scene.depth), len(first.scene.depth)
        if count != expected:
            raise InputError(
                f"{other.folder} has {count} frames and {first.folder} {expected}: "
                "only two results of the same clip can be shown side by side."
            )
        placements.append(side_by_side(first.scene, other.scene, placements[0]))
    ranges = measure(first.scene, first.frames.time, placements[0].scale)  # shared, so that colours can be compared
    folders = [pathlib.Path("result") if s.folder is None else s.folder for s in saved]
    titles = [folder.name for folder in folders]
    if len(set(titles)) < len(titles):
        titles = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return [Shown(t, s.scene, p, ranges) for t, s, p in zip(titles, saved, placements, strict=True)]


def frame_rate(time: np.ndarray) -> float:
    """Frames per second from (T,) times in seconds, clipped to 1..60; 10 if no two times differ."""
    steps = np.diff(time)
    steps = steps[steps > 0]
    return float(np.clip(1 / np.median(steps), 1, 60)) if steps.size else 10.0


@contextlib.contextmanager
def without_stdout() -> Iterator[None]:
    """Discards viser's own messages on standard output; our programs print what the user needs."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Viewer:
    """Shows one result, or two of the same clip side by side, in browsers.

        with Viewer([load_result("results/my_video")], port=8080) as viewer:
            viewer.wait()

    Args:
      saved: one or two results.
      host: address to listen on. Anyone who can reach it sees the scenes; 127.0.0.1 is this machine only.
      port: 0 for any free port.
      budget: limits on the number of points.
      playing: begin to play at once.

    Attributes:
      port: the port it listens at.

    Raises:
      ConfigError: viser is missing, or it cannot listen at the address.
      InputError: two results of different clips.
    """

    def __init__(
        self,
        saved: Sequence[Reconstruction],
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        budget: Budget = Budget(),
        playing: bool = False,
    ):
        viser = import_viser()
        check_address(host, port)
        shown = scenes_shown(saved)
        with without_stdout():
            self._server: viser.ViserServer = viser.ViserServer(host=host, port=port, verbose=False)
        self.port = self._server.get_port()
        if port not in (0, self.port):  # another program took the port meanwhile, and viser chose the next one
            with without_stdout():
                self._server.stop()
            raise port_in_use(port)
        self._shown = shown
        self._most_moving = budget.per_frame(len(shown[0].scene.depth))
        self._view = View(Playback(len(shown[0].scene.depth), rate=frame_rate(saved[0].frames.time), playing=playing))
        self._lock, self._wake, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        self._frame_shown, self._settled = -1, threading.Condition()
        self._loaded: queue.SimpleQueue = queue.SimpleQueue()
        self._failure: BaseException | None = None

        self._first_view = FirstView(shown)
        add_surroundings(self._server, shown, self._first_view)
        self._nodes = [
            SceneNodes(self._server.scene, name, scene, self._most_moving)
            for name, scene in zip(NODES, shown, strict=False)
        ]
        unit = "m" if all(result.unit == "metres" for result in saved) else ""
        self._ruler = Ruler(self._server.scene, self._drawn, [scene.placement.scale for scene in shown], unit)
        self._panel = Panel(self._server, self._view, shown[0].ranges, [scene.title for scene in shown], self)
        self._server.on_client_connect(self._welcome)
        work = (lambda: self._load(budget.static), self._run)
        self._threads = [threading.Thread(target=self._guarded, args=(part,), daemon=True) for part in work]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and the server. Browsers keep what they have received."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        with without_stdout():
            self._server.stop()

    def wait(self) -> None:
        """Waits until the viewer is closed. Raises the exception of a thread that has failed."""
        self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def view(self) -> View:
        """What is displayed."""
        with self._lock:
            return self._view

    def update(self, function: Callable[[View], View]) -> None:
        """Replaces the view by a function of it. Thread-safe."""
        with self._lock:
            self._view = function(self._view)
        self._wake.set()

    def poses(self) -> np.ndarray:
        """(T, 4, 4) world_from_cam of the first scene, after placement."""
        return self._shown[0].poses()

    def fov(self, t: int) -> float:
        """Vertical field of view of the first scene's frame t, radians."""
        return self._shown[0].fov(t)

    def aspect(self) -> float:
        """Aspect of the first scene's field of view, see `Shown.aspect`."""
        return self._shown[0].aspect(0)

    def measure(self, on: bool) -> None:
        """Begins or ends to measure between pressed points."""
        self._ruler.turn(on)

    def _drawn(self) -> list[np.ndarray]:
        view = self.view
        return [nodes.drawn(view) for nodes in self._nodes]

    def show_frame(self, t: int) -> None:
        """Pauses at a frame. Returns when it has been handed to viser, which sends it within moments."""
        while not self._stopped.is_set():
            self.update(lambda view: dataclasses.replace(view, playback=paused_at(view.playback, t)))
            with self._settled:
                if self._settled.wait_for(lambda: self._frame_shown == t, _RETRY_AFTER):
                    return

    def _guarded(self, work: Callable[[], None]) -> None:
        """Runs a thread's work and keeps its exception for `wait` to raise."""
        try:
            work()
        except BaseException as error:
            self._failure = error
            self._stopped.set()

    def _load(self, most_static: int) -> None:
        """Gathers the backgrounds: first a preview of each scene, then the complete ones."""
        for gather in (preview_cloud, lambda scene, placement: static_cloud(scene, placement, most_static)):
            for number, shown in enumerate(self._shown):
                if self._stopped.is_set():
                    return
                self._loaded.put((number, gather(shown.scene, shown.placement)))
                self._wake.set()

    def _run(self) -> None:
        """The display thread: shows the view until the viewer is closed."""
        nodes = self._nodes
        before, pictured, last = None, (-1, 0.0), time.monotonic()
        while not self._stopped.is_set():
            now = time.monotonic()
            with self._lock:
                self._view = view = dataclasses.replace(self._view, playback=self._view.playback.ticked(now - last))
            last = now
            if view != before:
                self._show(nodes, view)
                if before is None or (view.follow, view.playback.frame) != (before.follow, before.playback.frame):
                    self._follow(view)
            before = view
            frame = view.playback.frame
            late = frame != pictured[0]
            if late and now - pictured[1] >= 1 / _PICTURE_RATE:
                self._panel.show_pictures([shown.picture(frame) for shown in self._shown])
                pictured, late = (frame, now), False
            busy = self._work(nodes, view)
            due = view.playback.until_next()
            self._wake.wait(_STEP_PAUSE if busy else 1 / _PICTURE_RATE if late and due is None else due)
            self._wake.clear()

    def _show(self, nodes: list[SceneNodes], view: View) -> None:
        with self._server.atomic():
            for scene in nodes:
                scene.show(view)
        self._panel.show(self.view)  # the latest: an older frame would push back a time line that is being dragged
        with self._settled:
            self._frame_shown = view.playback.frame
            self._settled.notify_all()

    def _work(self, nodes: list[SceneNodes], view: View) -> bool:
        """Does some of the work that is not urgent. Returns whether there is more."""
        while not self._loaded.empty():
            number, cloud = self._loaded.get()
            nodes[number].set_background(cloud)
        busy = any(scene.refine(view) for scene in nodes)
        for t in view.playback.coming(_PREFETCH_FRAMES) if view.moving != "hidden" else ():
            if any(scene.prepare(t, view.look) for scene in nodes):
                return True
        return busy

    def _welcome(self, client: viser.ClientHandle) -> None:
        """A new browser gets a view that its window holds, and on a phone more room for it."""
        prepare_page(client, " | ".join(scene.title for scene in self._shown))
        if self.view.follow:
            self._follow(self.view)
            return
        with client.atomic():
            client.camera.fov = self._first_view.fov
            client.camera.position = self._first_view.position(client.camera.aspect)
            client.camera.look_at = self._first_view.target

    def _follow(self, view: View) -> None:
        """Moves the browsers' views to the current camera, if they follow it."""
        if not view.follow:
            return
        pose, fov = self.poses()[view.playback.frame], self.fov(view.playback.frame)
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.wxyz = quaternion(pose[:3, :3])
                client.camera.position = pose[:3, 3]
                client.camera.fov = fitting_fov(fov, self.aspect(), client.camera.aspect)


def paused_at(playback: Playback, t: int) -> Playback:
    """Paused at a frame."""
    return dataclasses.replace(playback.at_frame(t), playing=False)
