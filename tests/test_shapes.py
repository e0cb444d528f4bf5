"""The annotations of arrays: all public functions and pytrees have them, and calls that break them fail in tests."""

import dataclasses
import importlib
import inspect
import pathlib
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easi3r_jax as e3r
from easi3r_jax import alignment, motion
from easi3r_jax.core.arrays import Array, Float, Int
from easi3r_jax.core.geometry import camera, se3
from tests.shapes import ROOMS, ShapeError, checked, fields, is_array, is_record

ROOT = pathlib.Path(__file__).parents[1]


def modules_of(room: str) -> list[str]:
    """Modules of a room whose public functions and classes must have shapes: not those that read data sets."""
    folder = ROOT.joinpath("easi3r_jax", *room.split("."))
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
        if "datasets" not in path.parts
    ]


def public(module) -> dict[str, typing.Any]:
    """Functions and classes of a module: those of its `__all__`, else those that it defines."""
    names = getattr(module, "__all__", None)
    found = {name: getattr(module, name) for name in names or vars(module) if not name.startswith("_")}
    ours = {name: x for name, x in found.items() if getattr(x, "__module__", "").startswith("easi3r_jax.")}
    return {name: x for name, x in ours.items() if callable(x) and (names or x.__module__ == module.__name__)}


def is_bare(hint) -> bool:
    """Whether an annotation holds an array without its shape."""
    if hint in (jax.Array, np.ndarray):
        return True
    if is_array(hint) or hint in (optax.OptState, optax.Schedule):
        return False
    return any(is_bare(part) for part in typing.get_args(hint))


def without_shape(name: str, value) -> list[str]:
    """Parameters, results and fields with arrays of unspecified shape, and parameters without an annotation."""
    if not callable(value):
        return []
    if inspect.isclass(value):
        found = [f"{name}.{part}" for part, hint in fields(value).items() if is_bare(hint)] if is_record(value) else []
        methods = [f for f in vars(value).values() if inspect.isfunction(f)]
        return found + [
            x
            for f in methods
            if not f.__name__.startswith("_") or f.__name__ == "__call__"
            for x in without_shape(f"{name}.{f.__name__}", f)
        ]
    hints = inspect.get_annotations(inspect.unwrap(value), eval_str=True)
    missing = inspect.signature(value).parameters.keys() - {*hints, "self", "cls"}
    return [f"{name}({part})" for part in [*missing, *(part for part, hint in hints.items() if is_bare(hint))]]


def test_every_array_of_the_face_has_a_shape():
    assert [x for name in e3r.__all__ for x in without_shape(name, getattr(e3r, name))] == []


@pytest.mark.parametrize("name", [name for room in ROOMS for name in modules_of(room)])
def test_every_array_of_the_rooms_has_a_shape(name: str):
    module = importlib.import_module(name)
    assert [x for part, value in public(module).items() for x in without_shape(part, value)] == []


@pytest.mark.parametrize(
    ("hint", "bare"),
    [
        (Array, True),
        (Array | None, True),
        (np.ndarray, True),
        (tuple[int, Array], True),
        (dict[str, jax.Array], True),
        (Float[Array, "T H W"] | None, False),
        (Float[np.ndarray, ""], False),
        (tuple[Float[Array, "T"], ...], False),
        (int | str, False),
    ],
)
def test_an_array_without_a_shape_is_found(hint, bare: bool):
    assert is_bare(hint) == bare


# --- the check ------------------------------------------------------------------------------------------------------


def geometry(frames: int = 3, depths: int | None = None) -> e3r.Geometry:
    return e3r.Geometry(
        world_from_cam=jnp.tile(jnp.eye(4)[None], (frames, 1, 1)),
        intrinsics=jnp.tile(jnp.eye(3)[None], (frames, 1, 1)),
        depth=jnp.ones((depths or frames, 4, 6)),
        confidence=jnp.ones((frames, 4, 6)),
    )


def predictions(pairs: int = 2) -> e3r.PairPredictions:
    maps = jnp.ones((pairs, 4, 6, 3))
    edges = jnp.stack([jnp.arange(pairs), jnp.arange(pairs)[::-1]], axis=1)
    return e3r.PairPredictions(edges, maps, maps, maps[..., 0], maps[..., 0])


@checked
def edges_of(predictions: e3r.PairPredictions, flow: Float[Array, "E H W 2"] | None = None) -> Int[Array, "E 2"]:
    return predictions.edges if flow is None or flow.ndim == 4 else flow


@checked
def last_depth(clips: Sequence[e3r.Geometry], own: e3r.Geometry) -> Float[Array, "T H W"]:
    return clips[-1].depth if len(clips) > 2 else own.depth


def test_a_wrong_shape_to_the_face_raises():
    """Coordinates before pixels: nothing else would notice."""
    config = e3r.AlignConfig(flow_weight=0)
    with pytest.raises(
        ShapeError, match=r"make_problem: flow is float32\[2, 2, 4, 6\], not Float\['E H W 2'\] with E=2"
    ):
        e3r.make_problem(predictions(), config, flow=jnp.zeros((2, 2, 4, 6)))


def test_a_wrong_type_raises():
    with pytest.raises(ShapeError, match=r"masks is float32\[1, 4, 6\], not Bool\['T H W'\]"):
        motion.token_masks(np.zeros((1, 4, 6), np.float32), 2)
    with pytest.raises(ShapeError, match="flow is 3, not Float"):
        checked(flow_only)(3)


def flow_only(flow: Float[Array, "E H W 2"]) -> None:
    del flow


def test_the_fields_of_pytrees_are_checked_with_the_axes_of_the_call():
    assert len(edges_of(predictions(), jnp.zeros((2, 4, 6, 2)))) == 2
    with pytest.raises(ShapeError, match=r"flow is float32\[3, 4, 6, 2\], not Float\['E H W 2'\] with E=2, H=4, W=6"):
        edges_of(predictions(), jnp.zeros((3, 4, 6, 2)))
    wrong = dataclasses.replace(predictions(), points_i=jnp.ones((1, 4, 6, 3)))
    with pytest.raises(ShapeError, match=r"predictions.points_i is float32\[1, 4, 6, 3\]"):
        edges_of(wrong)


def test_the_result_is_checked_with_the_arguments():
    with pytest.raises(ShapeError, match=r"the result is float32\[2, 4\], not Int\['E 2'\] with E=2"):
        edges_of(predictions(), jnp.zeros((2, 4)))


def test_a_functions_own_error_comes_first():
    with pytest.raises(e3r.InputError, match="do not divide into patches"):
        motion.token_masks(np.zeros((1, 5, 7)), 2)
    with pytest.raises(e3r.InputError, match="There is flow for 3 pairs"):
        e3r.make_problem(predictions(), flow=jnp.zeros((3, 4, 6, 2)))


def test_pytrees_are_made_of_anything():
    """As JAX makes them: of axes to map over, of tracers, of nothing while structures are compared."""
    axes = jax.tree.map(lambda _: 0, geometry())
    clips = jax.tree.map(lambda x: jnp.stack([x, x]), geometry())
    assert jax.vmap(alignment.clean_confidence, in_axes=(axes,))(clips).shape == (2, 3, 4, 6)
    assert jax.eval_shape(alignment.clean_confidence, geometry()).shape == (3, 4, 6)
    assert len(edges_of(dataclasses.replace(predictions(), points_i=None, points_j=object()))) == 2


def test_a_pytree_within_a_container_has_axes_of_its_own():
    last_depth([geometry(2), geometry(5)], geometry(3))
    with pytest.raises(ShapeError, match=r"clips\[1\].depth is float32\[4, 4, 6\], not Float\['T H W'\] with T=5"):
        last_depth([geometry(2), geometry(5, 4)], geometry(3))
    with pytest.raises(ShapeError, match=r"the result is float32\[4, 4, 6\], not Float\['T H W'\] with T=3"):
        last_depth([geometry(2), geometry(5), geometry(4)], geometry(3))


def test_a_compiled_function_is_checked_while_it_is_traced():
    with pytest.raises(ShapeError, match="c_from_b"):
        jax.jit(lambda x: se3.compose(x, x))(jnp.eye(3))


def test_the_hook_is_installed():
    for function in (e3r.predict_pairs, e3r.DUSt3R.decode, camera.project, e3r.evaluate_scene):
        assert hasattr(function, "__wrapped__"), function
    functions = [f for f in (getattr(e3r, name) for name in e3r.__all__) if callable(f) and not inspect.isclass(f)]
    assert len(functions) > 20 and all(hasattr(f, "__wrapped__") for f in functions)
    model = e3r.random_model(e3r.DUSt3RConfig.thumbnail())
    with pytest.raises(ShapeError, match=r"encode: rgb is float32\[1, .*, not UInt8\['T H W 3'\]"):
        model.encode(np.zeros((1, *model.config.image_size, 3), np.float32))
