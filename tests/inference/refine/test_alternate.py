"""Which frames are prompts, in which order the others are tracked, and which results are used. Needs no network."""

import numpy as np
import pytest

from easi3r_jax.inference.refine import alternate

H, W = 12, 24


class Recorder:
    """A tracker that records its arguments, and finds `found(t)` in frame t."""

    def __init__(self, log, found):
        self.log, self.found, self.prompts = log, found, {}

    def prompt(self, frame, mask):
        self.log.append(("prompt", frame))
        self.prompts[frame] = mask.copy()

    def follow(self, frame, *, reverse):
        self.log.append(("backward" if reverse else "forward", frame))
        return self.found(frame, self.prompts)


def pixel(t, _=None):
    """A mask of two pixels, others in every frame; one of them is in the next frame's."""
    mask = np.zeros((H, W), bool)
    mask[0, t : t + 2] = True
    return mask


def pillar(t, height):
    """Such pixels, and those below them."""
    mask = pixel(t)
    mask[:height, t] = True
    return mask


def clip_of(frames, count):
    """Masks that are not empty in these frames; nothing may write to them."""
    masks = np.zeros((count, H, W), bool)
    masks[list(frames), -1] = True
    masks.flags.writeable = False
    return masks


@pytest.fixture
def refined():
    """`refined(masks, found)`: the result, and the log of each half."""

    def refined(masks, found=pixel, **options):
        logs = []

        def start():
            logs.append([])
            return Recorder(logs[-1], found)

        return alternate(start, masks, **options), logs

    return refined


def test_odd_frames_prompt_even_ones_and_the_reverse(refined):
    _, (odd, even) = refined(clip_of(range(6), 6))
    assert odd == [
        *(("prompt", t) for t in (1, 3, 5)),
        *(("forward", t) for t in (2, 4)),
        ("backward", 0),
    ]
    assert even == [*(("prompt", t) for t in (0, 2, 4)), *(("forward", t) for t in (1, 3, 5))]


def test_each_frame_gets_what_the_other_half_finds_beside_its_own(refined):
    masks = clip_of(range(6), 6)
    result, _ = refined(masks)
    np.testing.assert_array_equal(result, masks | np.stack([pixel(t) for t in range(6)]))


def test_empty_masks_do_not_prompt_and_are_found_by_the_other_half(refined):
    """Those of frames 1 and 5 are missing: their half passes them, but only the other, of 3 prompts, fills them."""
    masks = clip_of((0, 2, 3, 4), 6)
    result, (odd, even) = refined(masks, lambda t, prompts: pillar(t, 2 * len(prompts)))
    assert odd == [("prompt", 3), ("forward", 4), ("forward", 5), ("backward", 2), ("backward", 1), ("backward", 0)]
    assert even == [*(("prompt", t) for t in (0, 2, 4)), *(("forward", t) for t in (1, 3, 5))]
    found = np.stack([pillar(t, 6 if t % 2 else 2) for t in range(6)])
    np.testing.assert_array_equal(result, masks | found)


def test_an_object_seen_once_is_followed_in_all_frames(refined):
    """Not in every second one: the other half has nothing to fill the first one's frames with."""
    masks = clip_of((2,), 5)
    result, logs = refined(masks)
    assert logs == [[("prompt", 2), ("forward", 3), ("forward", 4), ("backward", 1), ("backward", 0)]]
    expected = masks | np.stack([pixel(t) for t in range(5)])
    expected[2] = masks[2]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("seen", [4, 5])
def test_an_object_seen_once_beside_another_is_steady(refined, seen):
    """One that stays is in all masks, the other in one: the half that sees it finds it in every second frame."""
    masks, count = np.zeros((10, H, W), bool), 10
    masks[:, 8:, :6] = True
    other = np.zeros((H, W), bool)
    other[1:5, 12:20] = True
    masks[seen] |= other

    def followed(t, prompts):
        return np.logical_or.reduce(list(prompts.values()))

    result, _ = refined(masks, followed)
    shown = [t for t in range(count) if (result[t] & other).any()]
    assert seen in shown and shown == list(range(shown[0], shown[-1] + 1))
    assert (result & masks == masks).all() and not (result & ~(masks | other)).any()


def ball(count, step, size):
    """A square that moves by `step` pixels a frame, farther than its size."""
    truth = np.zeros((count, H, step * count + size), bool)
    for t in range(count):
        truth[t, 2 : 2 + size, step * t : step * t + size] = True
    return truth


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("seen", [[3], [0, 1, 3, 4, 6, 7], [0, 2, 4, 6], [1, 2, 3, 5, 7]])
def test_a_fast_or_small_object_is_kept(refined, size, seen):
    """Its regions in frames beside each other do not overlap."""
    truth = ball(8, 10, size)
    masks = np.zeros_like(truth)
    masks[seen] = truth[seen]
    result, _ = refined(masks, lambda t, prompts: truth[t])
    np.testing.assert_array_equal(result, truth)


def test_beside_a_fast_object_one_seen_once_is_steady(refined):
    truth = ball(8, 10, 4)
    still = np.zeros_like(truth[0])
    still[8:12, -8:] = True
    masks = truth.copy()
    masks[4] |= still

    def followed(t, prompts):
        return truth[t] | (still if any((prompt & still).any() for prompt in prompts.values()) else False)

    result, _ = refined(masks, followed)
    np.testing.assert_array_equal(np.flatnonzero((result & still).any((1, 2))), [3, 4, 5])
    assert (result & truth == truth).all()


@pytest.mark.parametrize("masks", [clip_of((), 4), clip_of((0,), 1)])
def test_where_nothing_can_be_found_no_tracker_is_started(refined, masks):
    heard = []
    result, logs = refined(masks, progress=lambda *told: heard.append(told))
    np.testing.assert_array_equal(result, masks)
    assert not logs and not heard


def test_prompts_are_the_masks_themselves(refined):
    masks = np.random.default_rng(0).random((5, H, W)) < 0.5
    seen = []
    refined(masks, lambda t, prompts: seen.append((t, prompts)) or pixel(t))
    assert len(seen) == 5
    for t, prompts in seen:
        assert sorted(prompts) == [k for k in range(5) if k % 2 != t % 2]
        for k, mask in prompts.items():
            np.testing.assert_array_equal(mask, masks[k])


def test_a_mask_lost_in_one_frame_comes_back(refined):
    """A square that moves by a pixel a frame; the tracker knows how it moves, and only that."""
    truth = np.zeros((7, H, W), bool)
    for t in range(7):
        truth[t, 3:8, 2 + t : 7 + t] = True
    masks = truth.copy()
    masks[3] = False
    masks[4, 5:] = False

    def moved(t, prompts):
        nearest = min(prompts, key=lambda k: abs(k - t))
        return np.roll(prompts[nearest], t - nearest, axis=1)

    np.testing.assert_array_equal(refined(masks, moved)[0], truth)


def test_progress_counts_every_frame_of_both_halves(refined):
    heard = []
    refined(clip_of((0, 1, 4), 5), progress=lambda *told: heard.append(told), stage="refine")
    assert [told[:3] for told in heard] == [("refine", done, 10) for done in range(11)]
