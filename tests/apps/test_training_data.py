"""`--data`: held-out scenes, dynamic scenes, redrawn pairs."""

import shutil

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.apps.training_data import open_source
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.datasets import MIN_SCENES, hold_out, open_dataset

SIZE = (16, 24)


@pytest.fixture
def scenes(tmp_path):
    """Writes so many scenes of three frames: a wall before a camera at rest."""

    def write(count):
        for number in range(count):
            folder = tmp_path / f"scene{number}"
            (folder / "frames").mkdir(parents=True)
            for frame in range(3):
                Image.new("RGB", (SIZE[1], SIZE[0]), (40 * number, 80 * frame, 0)).save(
                    folder / "frames" / f"{frame}.png"
                )
            np.savez(
                folder / "ground_truth.npz",
                depth=np.full((3, *SIZE), 2, np.float32),
                world_from_cam=np.tile(np.eye(4), (3, 1, 1)),
                intrinsics=np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]),
            )
        return tmp_path

    return write


def test_no_scene_is_both_trained_on_and_held_out(scenes):
    """Reading a damaged scene is an error: neither side touches the other's."""
    root = scenes(MIN_SCENES)
    source = open_source(f"pairs:{root}", SIZE, seed=0, moving=False)
    ((_, _, apart_count, _),) = source.description["read"]
    assert source.notes == () and apart_count == 1
    _, apart = hold_out(open_dataset("pairs", root))
    assert apart is not None
    (held_out,) = (root / s.name for s in apart.sequences)
    kept = (held_out / "ground_truth.npz").read_bytes()
    (held_out / "ground_truth.npz").write_bytes(b"damaged")
    with source.batches(0, 4) as batches:
        assert batches is not None
        assert all(next(batches).rgb.shape == (4, 2, *SIZE, 3) for _ in range(10))
    with pytest.raises(InputError, match=held_out.name):
        source.held_out(4)
    (held_out / "ground_truth.npz").write_bytes(kept)
    for other in set(root.iterdir()) - {held_out}:
        (other / "ground_truth.npz").write_bytes(b"damaged")
    assert source.held_out(6).rgb.shape == (6, 2, *SIZE, 3)
    with pytest.raises(InputError, match="scene"), source.batches(0, 4) as batches:
        next(batches)  # pyright: ignore[reportArgumentType]


def test_a_resumed_run_sees_the_pairs_that_an_unbroken_one_would_see(scenes):
    source = open_source(f"pairs:{scenes(MIN_SCENES)}", SIZE, seed=0, moving=False)

    def drawn(step, count):
        with source.batches(step, 4) as batches:
            assert batches is not None
            return [next(batches) for _ in range(count)]

    unbroken, resumed = drawn(0, 5), drawn(2, 3)
    for theirs, ours in zip(unbroken[2:], resumed, strict=True):
        np.testing.assert_array_equal(theirs.rgb, ours.rgb)
    assert any((unbroken[0].rgb != other.rgb).any() for other in unbroken[1:])


def test_data_are_distinguished_by_content_not_by_path(scenes, tmp_path_factory):
    """A run may be resumed after its data moved, and not after they changed."""
    root = scenes(MIN_SCENES)
    moved = tmp_path_factory.mktemp("moved") / "data"
    shutil.copytree(root, moved)

    def description(folder):
        return open_source(f"pairs:{folder}", SIZE, seed=0, moving=False).description

    assert description(root) == description(moved)
    shutil.copytree(moved / "scene0", moved / "scene9")
    assert description(root) != description(moved)


def test_too_few_scenes_to_hold_any_out_are_reported(scenes):
    root = scenes(MIN_SCENES - 1)
    source = open_source(f"pairs:{root}", SIZE, seed=0, moving=False)
    (note,) = source.notes
    assert f"pairs:{root} has fewer than {MIN_SCENES} scenes" in note and "\n" not in note
    assert source.held_out(2).rgb.shape == (2, 2, *SIZE, 3)


def test_pairs_drawn_again_are_counted(scenes):
    root = scenes(1)
    with np.load(root / "scene0" / "ground_truth.npz") as file:
        arrays = dict(file)
    arrays["depth"][1] = 0
    np.savez(root / "scene0" / "ground_truth.npz", **arrays)
    source = open_source(f"pairs:{root}", SIZE, seed=0, moving=False)
    assert source.redrawn() == {}
    with source.batches(0, 4) as batches:
        assert batches is not None
        for _ in range(10):  # of three frames one is of no use: sooner or later it is drawn
            next(batches)
    assert source.redrawn().keys() == {"no known depth"}


def test_what_is_known_of_motion(scenes):
    assert open_source("", SIZE, seed=0, moving=True).is_static is False
    assert open_source("", SIZE, seed=0, moving=False).is_static is True
    assert open_source(f"pairs:{scenes(1)}", SIZE, seed=0, moving=True).is_static is None


def test_weights_are_positive(scenes):
    root = scenes(1)
    ((name, *_, weight),) = open_source(f"pairs:{root}:2.5", SIZE, seed=0, moving=False).description["read"]
    assert (name, weight) == ("pairs", 2.5)
    with pytest.raises(ConfigError, match="must be a number from 1e-09 to 1000000"):
        open_source(f"pairs:{root}:-1", SIZE, seed=0, moving=False)


def test_the_seed_of_the_held_out_pairs_is_reserved():
    with pytest.raises(ConfigError, match="--seed must be below 2147483647"):
        open_source("", (32, 48), seed=2**31 - 1, moving=False)
