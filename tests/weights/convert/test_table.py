"""The mapping is exhaustive: missing, unknown, duplicate, contradictory and misshapen tensors are reported together."""

import dataclasses
import json
import math

import numpy as np
import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import parameter_shapes
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.weights.checkpoint import load_checkpoint
from easi3r_jax.weights.convert import convert, open_source, table
from easi3r_jax.weights.convert.model_string import parse_model_string
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights
from tests import torch_writer

RELEASED = (
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
)
SMALL_DPT = DUSt3RConfig(
    image_size=(64, 64), enc_dim=8, enc_depth=1, enc_heads=2, dec_dim=8, dec_depth=4, dec_heads=2, head="dpt"
)


def unread():
    raise AssertionError("no tensor is read")


def their_shapes(config):
    """Names, shapes and aliases of a state dict."""
    ours, shapes = parameter_shapes(config), dict(table.unused(config))
    for rule in table.rules(config):
        shape = ours[rule.target]
        stacked = "{}" in rule.source
        for n in range(shape[0] if stacked else 1):
            shapes[rule.source.format(n)] = rule.transform.their_shape(shape[1:] if stacked else shape)
        if rule.alias:
            shapes[rule.alias] = shapes[rule.source]
    return shapes


def source_of(config, shapes, identities=None, read=unread, **changes):
    if identities is None:
        identities = {rule.alias: rule.source for rule in table.rules(config) if rule.alias}
    tensors = {n: LazyTensor(tuple(s), "float32", read, identities.get(n, n)) for n, s in shapes.items()}
    return OpenedWeights(
        **{"name": "x", "files": (), "config": config, "tensors": tensors, "duplicates": (), **changes}
    )


@pytest.mark.usefixtures("quick_shapes")
@pytest.mark.parametrize("name", RELEASED)
class TestReleasedManifests:
    @pytest.fixture
    def manifest(self, golden, name):
        return json.loads((golden / "manifests" / f"{name}.json").read_text())

    def source(self, manifest, drop=()):
        shapes = {n: shape for n, (shape, _) in manifest["entries"].items() if n not in drop}
        return source_of(parse_model_string(manifest["args_model_string"]), shapes, manifest["aliases"])

    def test_maps_exhaustively_onto_the_abstract_network(self, manifest, name):
        source = self.source(manifest)
        recipes, dropped, notices = table.match(source)
        assert not notices
        used = [n for recipe in recipes.values() for n, _ in recipe.tensors]
        assert len(used) == len(set(used))
        assert set(used) | set(dropped) | set(manifest["aliases"]) == set(manifest["entries"])
        assert {target: recipe.shape for target, recipe in recipes.items()} == parameter_shapes(source.config)
        for recipe in recipes.values():
            taken = sum(math.prod(tensor.shape) for _, tensor in recipe.tensors)
            assert taken == math.prod(recipe.shape)
        total = sum(math.prod(recipe.shape) for recipe in recipes.values())
        assert total + sum(math.prod(t.shape) for t in dropped.values()) == manifest["n_unique_params"]

    def test_a_file_without_aliases_is_accepted(self, manifest, name):
        (recipes, dropped, notices), (expected, same, _) = (
            table.match(self.source(manifest, drop=drop)) for drop in (set(manifest["aliases"]), ())
        )
        assert not notices and dropped.keys() == same.keys()
        for target, recipe in expected.items():
            assert [n for n, _ in recipes[target].tensors] == [n for n, _ in recipe.tensors]

    def test_a_file_may_have_either_name(self, manifest, name):
        recipes, _, _ = table.match(self.source(manifest, drop=set(manifest["aliases"].values())))
        used = {n for recipe in recipes.values() for n, _ in recipe.tensors}
        assert used >= set(manifest["aliases"])

    def test_every_missing_tensor_is_detected(self, manifest, name):
        aliased = set(manifest["aliases"]) | set(manifest["aliases"].values())
        for absent in list(manifest["entries"])[::60]:
            if absent not in aliased:
                with pytest.raises(CheckpointError, match=f"1 tensor missing: {absent}"):
                    table.match(self.source(manifest, drop={absent}))


@pytest.mark.usefixtures("quick_shapes")
class TestProblems:
    def test_all_kinds_are_listed_together(self):
        shapes = their_shapes(SMALL_DPT)
        del shapes["dec_norm.weight"], shapes["mask_token"]
        shapes |= {"extra.weight": (1,), "enc_blocks.1.norm1.weight": (8,), "enc_norm.bias": (9,), "dec_norm.bias": ()}
        source = source_of(SMALL_DPT, shapes, duplicates=("enc_norm.weight",))
        source.tensors["enc_norm.weight"] = dataclasses.replace(source.tensors["enc_norm.weight"], dtype="int64")
        with pytest.raises(CheckpointError) as caught:
            table.match(source)
        for words in (
            "2 tensors missing: dec_norm.weight, mask_token",
            "2 tensors unknown: enc_blocks.1.norm1.weight, extra.weight",
            "1 tensor duplicate: enc_norm.weight",
            "2 tensors of the wrong shape: enc_norm.bias [9] instead of [8], dec_norm.bias [] instead of [8]",
            "1 tensor without floating-point numbers: enc_norm.weight (int64)",
        ):
            assert words in str(caught.value)

    def test_a_long_list_ends_with_a_count(self):
        with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
            table.match(source_of(SMALL_DPT, {f"other.{n}": (1,) for n in range(500)}))
        assert len(str(caught.value)) < 10_000

    def test_names_cannot_break_the_line(self):
        shapes = {**their_shapes(SMALL_DPT), "a\nb\x1b[31m": (1,), "c" * 5000: (1,)}
        with pytest.raises(CheckpointError, match="2 tensors unknown") as caught:
            table.match(source_of(SMALL_DPT, shapes))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000

    def test_a_partial_second_decoder_is_not_filled_from_the_first(self):
        shapes = {n: s for n, s in their_shapes(SMALL_DPT).items() if not n.startswith("dec_blocks2.3.")}
        with pytest.raises(CheckpointError, match=r"missing: dec_blocks2\.3"):
            table.match(source_of(SMALL_DPT, shapes))


@pytest.fixture(scope="module")
def arrays():
    """Weights of a small network with DPT heads; aliases share their arrays."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s, np.float32) for n, s in their_shapes(SMALL_DPT).items()}
    for rule in table.rules(SMALL_DPT):
        if rule.alias:
            arrays[rule.alias] = arrays[rule.source]
    return arrays


class TestAliases:
    """DPT heads have four tensors with two names each."""

    ALIAS = "downstream_head2.dpt.scratch.layer_rn.1.weight"
    NAME = "downstream_head2.dpt.scratch.layer2_rn.weight"

    @pytest.fixture
    def dpt_pth(self, arrays, tmp_path):
        string = (
            "AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=(64, 64), head_type='dpt', enc_embed_dim=8, "
            "enc_depth=1, enc_num_heads=2, dec_embed_dim=8, dec_depth=4, dec_num_heads=2)"
        )

        def make(shared, changes):
            """With `shared`, aliases refer to the same storage, as in torch's files; else each has its own."""
            made = {**arrays, **changes}
            owner = {rule.alias: rule.source for rule in table.rules(SMALL_DPT) if rule.alias} if shared else {}
            keys = {n: str(key) for key, n in enumerate(n for n in made if n not in owner)}
            model = {n: torch_writer.Tensor(keys[owner.get(n, n)], a.shape) for n, a in made.items()}
            root = {"args": torch_writer.namespace(model=string), "model": model}
            torch_writer.write(tmp_path / "dpt.pth", root, ((key, made[n]) for n, key in keys.items()))
            return tmp_path / "dpt.pth"

        return make

    @pytest.mark.parametrize("shared", [True, False])
    def test_equal_aliases_are_one_tensor(self, dpt_pth, arrays, tmp_path, shared):
        convert(dpt_pth(shared, {}), tmp_path / "output")
        config, model, _ = load_checkpoint(tmp_path / "output")
        assert config == SMALL_DPT
        found = np.asarray(model.head2.level_convs[1].kernel[...])
        np.testing.assert_array_equal(found, arrays[self.NAME].transpose(2, 3, 1, 0))
        enlarge = np.asarray(model.head1.enlarge4.kernel[...])
        released = arrays["downstream_head1.dpt.act_postprocess.0.1.weight"]
        np.testing.assert_array_equal(enlarge, released.transpose(0, 2, 3, 1))

    def test_different_aliases_are_refused(self, dpt_pth, arrays):
        other = arrays[self.NAME].copy()
        other[0, 0, 0, 0] += 1e-3
        words = f"1 tensor different under their two names: {self.NAME} and {self.ALIAS}"
        with pytest.raises(CheckpointError, match=words):
            table.match(open_source(dpt_pth(False, {self.ALIAS: other})))

    def test_misshapen_aliases_are_refused(self, dpt_pth):
        wrong = np.zeros((8, 8, 3, 3), np.float32)
        with pytest.raises(CheckpointError, match=f"wrong shape: {self.ALIAS}"):
            table.match(open_source(dpt_pth(False, {self.ALIAS: wrong})))
