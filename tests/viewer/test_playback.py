"""The player as a state machine."""

import dataclasses

import numpy as np
import pytest

from easi3r_jax.viewer.playback import Playback, View


def test_it_plays_at_its_rate_in_a_loop():
    state = Playback(10, rate=4.0).toggled()
    seen = []
    for _ in range(24):
        state = state.ticked(0.125)
        seen.append(state.frame)
    assert seen == [t // 2 % 10 for t in range(1, 25)]


def test_no_time_passes_while_it_is_paused():
    state = Playback(10, frame=3)
    assert state.ticked(100.0) == state
    assert state.until_next() is None


@pytest.mark.parametrize("rate", [1.0, 7.3, 30.0, 60.0])
def test_the_rate_does_not_depend_on_the_number_of_ticks(rate):
    rng = np.random.default_rng(0)
    steps = rng.uniform(0, 0.3, 50)
    often = once = Playback(1000, rate=rate).toggled()
    for seconds in steps:
        often = often.ticked(seconds)
    once = once.ticked(steps.sum())
    assert abs(often.frame + often.pending - once.frame - once.pending) < 1e-6


def test_overdue_frames_are_skipped():
    assert Playback(100, rate=10.0).toggled().ticked(2.55).frame == 25


def test_the_next_frame_is_due_at_the_predicted_time():
    state = Playback(100, rate=10.0).toggled().ticked(0.03)
    due = state.until_next()
    assert state.ticked(due - 1e-6).frame == 0
    assert state.ticked(due + 1e-6).frame == 1


def test_a_stride_shows_its_multiples_and_wraps_to_the_first_frame():
    state = Playback(10, stride=4, rate=1.0).toggled()
    seen = [state.frame]
    for _ in range(5):
        state = state.ticked(1.0)
        seen.append(state.frame)
    assert seen == [0, 4, 8, 0, 4, 8]
    assert state.at_frame(7).stepped(1).frame == 8
    assert state.at_frame(7).stepped(-1).frame == 0


def test_steps_pause_and_wrap_around():
    state = Playback(5).toggled().stepped(-1)
    assert (state.frame, state.playing) == (4, False)
    assert state.stepped(1).frame == 0


def test_a_seek_is_clamped_to_the_clip():
    assert [Playback(5).at_frame(t).frame for t in (-3, 0, 4, 99)] == [0, 0, 4, 4]


def test_a_single_frame_can_be_played():
    state = Playback(1).toggled().ticked(9.0)
    assert state.frame == 0 and state.coming(8) == []


def test_coming_frames_are_those_that_steps_reach():
    state = Playback(5, frame=3)
    assert state.coming(3) == [4, 0, 1]
    assert state.coming(99) == [4, 0, 1, 2]
    walked = [state.stepped(step).frame for step in range(1, 5)]
    assert state.coming(4) == walked


@pytest.mark.parametrize(("moving", "expected"), [("this frame", [6]), ("trail", [0, 2, 4, 6]), ("hidden", [])])
def test_moving_frames(moving, expected):
    view = View(Playback(20, frame=6, stride=2), moving=moving, trail=3)
    assert view.moving_frames() == expected


def test_the_image_is_hidden_when_seen_through_its_camera():
    view = View(Playback(5))
    assert view.shows_image
    for field in ({"follow": True}, {"recording_camera": True}, {"image": False}):
        assert not dataclasses.replace(view, **field).shows_image


@pytest.mark.parametrize("playing", [True, False])
def test_after_a_video_the_player_returns_to_its_frame(playing):
    before = View(Playback(9, frame=4, playing=playing))
    filming = dataclasses.replace(before, recording_camera=True, trail=3, playback=Playback(9, frame=8, rate=5.0))
    after = filming.resumed(before)
    assert (after.playback.frame, after.playback.playing, after.recording_camera) == (4, playing, False)
    assert (after.trail, after.playback.rate) == (3, 5.0)  # what was set meanwhile is kept


def test_a_trail_starts_at_the_first_frame_of_the_clip_at_the_earliest():
    view = View(Playback(20, frame=2), moving="trail", trail=8)
    assert view.moving_frames() == [0, 1, 2]
    assert dataclasses.replace(view, trail=1).moving_frames() == [1, 2]
