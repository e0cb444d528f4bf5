"""The panel beside the scene. Its callbacks only replace the player's view.

Callbacks are coroutines, which viser runs immediately and in order. It would run plain functions later, in threads,
when a control's value may have changed already, since the player moves the time line, too.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easi3r_jax.viewer import capture, colors
from easi3r_jax.viewer.clouds import MIN_NETWORK_CONFIDENCE
from easi3r_jax.viewer.colors import Ranges
from easi3r_jax.viewer.playback import MOVING, View
from easi3r_jax.viewer.viser_import import import_viser

if TYPE_CHECKING:
    import viser

_PICTURES_WIDTH = 330.0
_STEPS = {"|<": None, "<": -1, ">": 1}


class Panel:
    """All controls. Browsers share them, as they share the view.

    Args:
      server: gets the controls in its panel.
      view: initial values of the controls.
      ranges: the colour maps' ranges.
      titles: of the scenes.
      player: its view is updated.
    """

    def __init__(
        self, server: viser.ViserServer, view: View, ranges: Ranges, titles: Sequence[str], player: capture.Player
    ):
        self._gui, self._icons, self._ranges, self._player = server.gui, import_viser().Icon, ranges, player
        self._recording = threading.Lock()
        with self._gui.add_folder("Time"):
            self._time(view)
        with self._gui.add_folder("Display"):
            self._display(view)
        with self._gui.add_folder("Points"):
            self._points(view)
        with self._gui.add_folder("Save"):
            self._save()
        window = self._gui.add_panel()
        self._pictures: list[viser.GuiImageHandle] = []
        names = titles if len(titles) > 1 else ["Current frame"]  # in tabs: two images at once would cover the scenes
        self._tabs = [window.add_tab(name, self._icons.PHOTO) for name in names]
        self._gui.main_panel.dock_right()
        window.float(x=12, y=-12, width=_PICTURES_WIDTH)

    def show(self, view: View) -> None:
        """Updates the controls that follow the view: the time line, the play button, the legend."""
        self._frame.value = view.playback.frame
        self._play.label = "Pause" if view.playback.playing else "Play"
        self._play.icon = self._icons.PLAYER_PAUSE if view.playback.playing else self._icons.PLAYER_PLAY
        self._legend.content = colors.legend(view.look.color, self._ranges)

    def show_pictures(self, pictures: Sequence[np.ndarray]) -> None:
        """Shows the current frame of each scene."""
        for number, picture in enumerate(pictures):
            if number == len(self._pictures):
                with self._tabs[number]:
                    self._pictures.append(self._gui.add_image(picture, format="jpeg", jpeg_quality=85))
            else:
                self._pictures[number].image = picture

    def _slider(self, *values: Any, **options: Any) -> viser.GuiInputHandle[Any]:
        """A slider whose ends are not labelled: the handle would cover the labels."""
        return self._gui.add_slider(*values, marks=(), **options)

    def _time(self, view: View) -> None:
        count, rate = view.playback.num_frames, view.playback.rate
        self._frame = self._slider("frame", 0, count - 1, 1, 0)
        _when(self._frame.on_update, lambda v: self._playback("at_frame", v))
        self._play = self._gui.add_button("Play", icon=self._icons.PLAYER_PLAY, disabled=count == 1)
        _when(self._play.on_click, lambda _: self._playback("toggled"))
        steps = self._gui.add_button_group("step", tuple(_STEPS), hint="First frame, previous, next.")
        _when(steps.on_click, lambda v: self._step(_STEPS[v]))
        speed = self._slider("speed", 1.0, 60.0, 0.5, float(np.round(2 * rate) / 2), hint="Frames per second.")
        _when(speed.on_update, lambda v: self._set("playback", rate=v))
        widest = max(1, min(20, count // 2))
        stride = self._slider("stride", 1, widest, 1, 1, hint="Show every n-th frame.")
        _when(stride.on_update, lambda v: self._set("playback", stride=v))
        follow = self._gui.add_checkbox("follow camera", view.follow, hint="Look through the current camera.")
        _when(follow.on_update, lambda v: self._set(follow=v))

    def _display(self, view: View) -> None:
        color = self._gui.add_dropdown("colour", colors.CHOICES, initial_value=view.look.color)
        _when(color.on_update, lambda v: self._set("look", color=v))
        self._legend = self._gui.add_html(colors.legend(view.look.color, self._ranges))
        moving = self._gui.add_dropdown("moving", MOVING, initial_value=view.moving, hint="Dynamic points.")
        _when(moving.on_update, lambda v: self._set(moving=v))
        longest = max(1, view.playback.num_frames - 1)
        trail = self._slider("trail", 1, longest, 1, min(view.trail, longest), hint="Earlier frames in a trail.")
        _when(trail.on_update, lambda v: self._set(trail=v))
        for field, label in (("background", "background"), ("cameras", "path and cameras"), ("image", "current image")):
            box = self._gui.add_checkbox(label, getattr(view, field))
            _when(box.on_update, lambda v, field=field: self._set(**{field: v}))
        ruler = self._gui.add_checkbox("measure", False, hint="Press two points to see their distance.")
        _when(ruler.on_update, self._player.measure)

    def _points(self, view: View) -> None:
        highest = float(np.ceil(max(self._ranges.limits["confidence"][1], MIN_NETWORK_CONFIDENCE + 1)))
        confidence = self._slider(
            "confidence", MIN_NETWORK_CONFIDENCE, highest, 0.1, view.look.confidence, hint="Minimum, for static points."
        )
        _when(confidence.on_update, lambda v: self._set("look", confidence=v))
        size = self._slider("size", 0.5, 12.0, 0.5, view.look.size, hint="Diameter of points, in pixels.")
        _when(size.on_update, lambda v: self._set("look", size=v))
        fraction = self._slider("points (%)", 5, 100, 5, round(100 * view.look.fraction), hint="Of all points.")
        _when(fraction.on_update, lambda v: self._set("look", fraction=v / 100))

    def _save(self) -> None:
        self._gui.add_button("Screenshot", icon=self._icons.CAMERA).on_click(self._screenshot)
        path = self._gui.add_dropdown(
            "path", capture.PATHS, initial_value=capture.PATHS[0], hint="Camera path of the video."
        )
        sweep = self._slider("angle (°)", 10, 360, 10, 60, hint="Of an orbit; 360 is a full turn.")
        button = self._gui.add_button("Video", icon=self._icons.MOVIE)
        button.on_click(lambda event: self._video(event.client, path.value, float(sweep.value)))

    def _set(self, part: str = "", **fields: Any) -> None:
        """Replaces fields of the view, or of its field `part`."""

        def changed(view: View) -> View:
            if part:
                return dataclasses.replace(view, **{part: dataclasses.replace(getattr(view, part), **fields)})
            return dataclasses.replace(view, **fields)

        self._player.update(changed)

    def _playback(self, method: str, *values: int) -> None:
        self._player.update(lambda v: dataclasses.replace(v, playback=getattr(v.playback, method)(*values)))

    def _step(self, steps: int | None) -> None:
        if steps is None:
            self._playback("at_frame", 0)
        else:
            self._playback("stepped", steps)

    def _screenshot(self, event: viser.GuiEvent) -> None:
        client = event.client
        if client is not None:
            _reporting_errors(client, lambda: capture.screenshot(client, self._player))

    def _video(self, client: viser.ClientHandle | None, path: str, degrees: float) -> None:
        if client is None:
            return
        if not self._recording.acquire(blocking=False):
            client.add_notification("A video is being recorded", "Wait until it is finished.", auto_close_seconds=5)
            return
        try:
            _reporting_errors(client, lambda: capture.record(client, self._player, path, degrees))
        finally:
            self._recording.release()


def _when(listen: Callable[[Callable], Any], do: Callable[[Any], None]) -> None:
    """Calls `do` with a control's value when a browser has changed it, but not when this program has."""

    async def changed(event: viser.GuiEvent) -> None:
        if event.client is not None:
            do(event.target.value)

    listen(changed)


def _reporting_errors(client: viser.ClientHandle, do: Callable[[], None]) -> None:
    """Runs `do` and shows its errors in the browser. A browser that was closed is ignored."""
    try:
        do()
    except capture.RenderError as error:
        client.add_notification("No image", str(error), color="red", auto_close_seconds=10)
    except capture.BrowserClosedError:
        pass
