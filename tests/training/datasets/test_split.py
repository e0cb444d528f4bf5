"""Held-out scenes: whole scenes, independent of the data set's location."""

import pathlib
import shutil

import pytest

from easi3r_jax.training.datasets import MIN_SCENES, Dataset, Sequence, hold_out, open_dataset


def fail(*_):
    raise AssertionError("nothing is to be read")


def dataset(names, root="/data", together=lambda name: ""):
    sequences = [Sequence(f"{root}/{name}", 4, fail, fail, fail, together=together(f"{root}/{name}")) for name in names]
    return Dataset("pairs", pathlib.Path(root), tuple(sequences))


def names(part):
    return [pathlib.Path(s.name).name for s in part.sequences]


@pytest.mark.parametrize(("count", "apart"), [(5, 1), (19, 1), (20, 2), (131, 13)])
def test_one_scene_in_ten_is_held_out(count, apart):
    whole = dataset([f"scene{n}" for n in range(count)])
    trained, held_out = hold_out(whole)
    assert held_out is not None and len(held_out.sequences) == apart
    assert sorted(names(trained) + names(held_out)) == sorted(names(whole))
    assert not set(names(trained)) & set(names(held_out))


def test_nothing_is_held_out_of_few_scenes():
    whole = dataset([f"scene{n}" for n in range(MIN_SCENES - 1)])
    assert hold_out(whole) == (whole, None)


def test_the_choice_depends_on_relative_paths_only():
    some = [f"scene{n}" for n in range(40)]
    here, elsewhere, backwards = (
        hold_out(d)[1] for d in (dataset(some), dataset(some, root="/mnt/other"), dataset(some[::-1]))
    )
    assert here and elsewhere and backwards
    assert names(here) == names(elsewhere) == names(backwards)[::-1]
    others = hold_out(dataset([f"room{n}" for n in range(40)]))[1]
    assert others and [n[5:] for n in names(here)] != [n[4:] for n in names(others)]


def test_a_clip_and_its_motionless_twin_are_one_scene(write):
    truth = write("pairs")
    for number in range(MIN_SCENES):
        for twin in ("", "_still"):
            shutil.copytree(truth.folder, truth.folder.parent / f"clip{number}{twin}")
    shutil.rmtree(truth.folder)
    trained, held_out = hold_out(open_dataset("pairs", truth.root))
    assert held_out is not None
    clip, still = sorted(names(held_out))
    assert still == f"{clip}_still" and len(trained.sequences) == 2 * MIN_SCENES - 2


def test_cameras_of_one_car_are_held_out_together():
    def car(name):
        return name.split(" ")[0]

    trained, held_out = hold_out(dataset([f"car{n} (camera {c})" for n in range(6) for c in range(5)], together=car))
    assert held_out is not None and len(held_out.sequences) == 5
    assert len({car(s.name) for s in held_out.sequences}) == 1
    assert not {car(s.name) for s in held_out.sequences} & {car(s.name) for s in trained.sequences}
    few = dataset([f"car{n} (camera {c})" for n in range(2) for c in range(5)], together=car)
    assert hold_out(few)[1] is None
