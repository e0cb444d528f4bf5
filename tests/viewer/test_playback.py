"""The player as a state machine."""

import dataclasses

import numpy as np
import pytest

from easi3r_jax.viewer.playback import Playback, View


def test_it_plays_at_its_rate_and_in_a_loop():
    state = Playback(10, rate=4.0).toggled()
    seen = []
    for _ in range(24):
        state = state.ticked(0.125)
        seen.append(state.frame)
    assert seen == [t // 2 % 10 for t in range(1, 25)]


def test_time_stands_still_while_it_is_paused():
    state = Playback(10, frame=3)
    assert state.ticked(100.0) == state
    assert state.until_next() is None


@pytest.mark.parametrize("rate", [1.0, 7.3, 30.0, 60.0])
def test_the_pace_does_not_depend_on_how_often_one_looks(rate):
    rng = np.random.default_rng(0)
    steps = rng.uniform(0, 0.3, 50)
    often = once = Playback(1000, rate=rate).toggled()
    for seconds in steps:
        often = often.ticked(seconds)
    once = once.ticked(steps.sum())
    assert abs(often.frame + often.owed - once.frame - once.owed) < 1e-6


def test_frames_whose_time_has_passed_are_left_out():
    assert Playback(100, rate=10.0).toggled().ticked(2.55).frame == 25


def test_the_next_frame_is_due_when_it_is_said_to_be():
    state = Playback(100, rate=10.0).toggled().ticked(0.03)
    due = state.until_next()
    assert state.ticked(due - 1e-6).frame == 0
    assert state.ticked(due + 1e-6).frame == 1


def test_a_stride_keeps_to_its_grid_and_comes_back_to_the_beginning():
    state = Playback(10, stride=4, rate=1.0).toggled()
    seen = [state.frame]
    for _ in range(5):
        state = state.ticked(1.0)
        seen.append(state.frame)
    assert seen == [0, 4, 8, 0, 4, 8]
    assert state.sought(7).stepped(1).frame == 8
    assert state.sought(7).stepped(-1).frame == 0


def test_steps_pause_and_go_around():
    state = Playback(5).toggled().stepped(-1)
    assert (state.frame, state.playing) == (4, False)
    assert state.stepped(1).frame == 0


def test_what_is_sought_is_in_the_clip():
    assert [Playback(5).sought(t).frame for t in (-3, 0, 4, 99)] == [0, 0, 4, 4]


def test_a_single_frame_can_be_played():
    state = Playback(1).toggled().ticked(9.0)
    assert state.frame == 0 and state.coming(8) == []


def test_coming_frames_are_those_that_come():
    state = Playback(5, frame=3)
    assert state.coming(3) == [4, 0, 1]
    assert state.coming(99) == [4, 0, 1, 2]
    walked = [state.stepped(step).frame for step in range(1, 5)]
    assert state.coming(4) == walked


@pytest.mark.parametrize(("moving", "expected"), [("this frame", [6]), ("trail", [0, 2, 4, 6]), ("hidden", [])])
def test_moving_frames(moving, expected):
    view = View(Playback(20, frame=6, stride=2), moving=moving, trail=3)
    assert view.moving_frames() == expected


def test_who_looks_through_a_camera_does_not_see_its_image():
    view = View(Playback(5))
    assert view.shows_image
    for field in ({"follow": True}, {"filmed": True}, {"image": False}):
        assert not dataclasses.replace(view, **field).shows_image


@pytest.mark.parametrize("playing", [True, False])
def test_after_a_video_the_player_is_where_it_was(playing):
    before = View(Playback(9, frame=4, playing=playing))
    filming = dataclasses.replace(before, filmed=True, trail=3, playback=Playback(9, frame=8, rate=5.0))
    after = filming.resumed(before)
    assert (after.playback.frame, after.playback.playing, after.filmed) == (4, playing, False)
    assert (after.trail, after.playback.rate) == (3, 5.0)  # what somebody has set meanwhile stays


def test_a_trail_begins_with_the_clip():
    view = View(Playback(20, frame=2), moving="trail", trail=8)
    assert view.moving_frames() == [0, 1, 2]
    assert dataclasses.replace(view, trail=1).moving_frames() == [1, 2]
