"""The string of the architecture is parsed strictly and never evaluated."""

import json
import math

import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.weights.convert.model_string import parse_arguments, parse_model_string

RELEASED = {
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": DUSt3RConfig.vit_large_512_dpt(),
    "DUSt3R_ViTLarge_BaseDecoder_512_linear": DUSt3RConfig.vit_large_512_linear(),
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": DUSt3RConfig.vit_large_224_linear(),
    "MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt": DUSt3RConfig.vit_large_512_dpt(),
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": DUSt3RConfig.mast3r_512(),
}
ARGUMENTS = {
    "pos_embed": "'RoPE100'",
    "img_size": "(64, 96)",
    "head_type": "'linear'",
    "enc_embed_dim": "8",
    "enc_depth": "2",
    "enc_num_heads": "2",
    "dec_embed_dim": "16",
    "dec_depth": "3",
    "dec_num_heads": "4",
}
CONFIG = DUSt3RConfig(
    image_size=(64, 96), enc_dim=8, enc_depth=2, enc_heads=2, dec_dim=16, dec_depth=3, dec_heads=4, head="linear"
)


def string(**changes):
    return f"AsymmetricCroCo3DStereo({', '.join(f'{k}={v}' for k, v in {**ARGUMENTS, **changes}.items() if v)})"


@pytest.mark.parametrize("name", RELEASED)
def test_released_strings_name_the_presets(golden, name):
    manifest = json.loads((golden / "manifests" / f"{name}.json").read_text())
    assert parse_model_string(manifest["args_model_string"]) == RELEASED[name]
    assert parse_model_string(manifest.get("load_time_string", manifest["args_model_string"])) == RELEASED[name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"landscape_only": "True"},  # has no effect on inference
        {"landscape_only": "False"},
        {"patch_embed_cls": "'ManyAR_PatchEmbed'"},
        {"patch_embed_cls": "'PatchEmbedDust3R'"},
        {"freeze": "'encoder'"},
        {"output_mode": "'pts3d'", "depth_mode": "('exp', -inf, inf)", "conf_mode": "('exp', 1, inf)"},
        {"img_size": "[64, 96]"},
        {"mlp_ratio": "4"},
    ],
)
def test_options_without_effect(changes):
    assert parse_model_string(f"  {string(**changes)}\n") == CONFIG


def test_options_are_kept():
    config = parse_model_string(
        string(pos_embed="'RoPE50.5'", img_size="224", conf_mode="('exp', 0, 9.5)", mlp_ratio="2", patch_size="8")
    )
    assert (config.rope_base, config.image_size, config.confidence_range) == (50.5, (224, 224), (0.0, 9.5))
    assert (config.mlp_ratio, config.patch_size) == (2.0, 8)
    assert parse_model_string(string(conf_mode="('exp', 1, inf)")).confidence_range == (1.0, math.inf)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "print('golden')",
        "AsymmetricCroCo3DStereo",
        "AsymmetricCroCo3DStereo(8)",
        "AsymmetricCroCo3DStereo(**{})",
        "AsymmetricCroCo3DStereo()()",
        "AsymmetricCroCo3DStereo().load()",
        "x.AsymmetricCroCo3DStereo()",
        "AsymmetricCroCo3DStereo(); open('flag', 'w')",
        "AsymmetricCroCo3DStereo(",
        string()[:-1] + ", enc_depth=3)",
        "[AsymmetricCroCo3DStereo() for _ in (1,)]",
        "AsymmetricCroCo3DStereo(a=\0)",
        "AsymmetricCroCo3DStereo(a=" + "(" * 9000,
        "AsymmetricCroCo3DStereo(a=" + "-" * 5000 + "1)",
        string() + " " * 20_000,
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(CheckpointError, match="it was not executed"):
        parse_model_string(text)


@pytest.mark.parametrize(
    "value",
    [
        *("__import__('os').mkdir('flag')", "open('flag', 'w')", "x", "lambda: 1", "1 + 1", "2 ** 10", "f'{1}'"),
        *("{}", "b'x'", "...", "1j", "(1, x)", "-'a'", "-True", "not 1", "inf()", "[i for i in (1,)]", "'a' 'b' % 1"),
    ],
)
def test_values_must_be_literals(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is not a literal; it was not executed"):
        parse_model_string(string(enc_depth=value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"two_confs": "True"}, "unknown options: 'two_confs'"),
        ({"a": "1", "b": "2"}, "'a', 'b'"),
        ({"enc_depth": None, "head_type": None}, "lacks enc_depth, head_type"),
        ({"output_mode": "'pts3d+desc24'"}, "output_mode='pts3d.desc24'; only 'pts3d'"),
        ({"depth_mode": "('linear', -inf, inf)"}, "depth_mode"),
        ({"depth_mode": "('exp', 0, inf)"}, "depth_mode"),
        ({"conf_mode": "('sigmoid', 0, 1)"}, "conf_mode"),
        ({"conf_mode": "('exp', 2, 1)"}, "conf_mode"),
        ({"conf_mode": "('exp', 1)"}, "conf_mode"),
        ({"norm_im2_in_dec": "False"}, "norm_im2_in_dec"),
        ({"landscape_only": "'maybe'"}, "landscape_only"),
        ({"patch_embed_cls": "'Other'"}, "patch_embed_cls"),
        ({"pos_embed": "'cosine'"}, "pos_embed"),
        ({"pos_embed": "'RoPE'"}, "pos_embed"),
        ({"pos_embed": "'RoPEnan'"}, "pos_embed"),
        ({"pos_embed": "'RoPE-3'"}, "pos_embed"),
        ({"head_type": "'catmlp'"}, "Unknown head"),
        ({"head_type": "'catmlp+dpt'"}, "only 'pts3d.desc<channels>' is supported"),
        ({"metric": "1"}, "neither true nor false"),
        ({"head_type": "3"}, "head_type"),
        ({"enc_embed_dim": "10"}, "must divide"),
        ({"enc_embed_dim": "0"}, "enc_embed_dim"),
        ({"enc_embed_dim": "-8"}, "enc_embed_dim"),
        ({"enc_embed_dim": "8.0"}, "enc_embed_dim"),
        ({"enc_embed_dim": "True"}, "enc_embed_dim"),
        ({"enc_embed_dim": "10 ** 9"}, "not a literal"),
        ({"enc_embed_dim": "1000000000"}, "enc_embed_dim is '1000000000'"),
        ({"dec_depth": "100000"}, "dec_depth"),
        ({"mlp_ratio": "inf"}, "mlp_ratio"),
        ({"mlp_ratio": "'4'"}, "mlp_ratio"),
        ({"img_size": "(64,)"}, "img_size"),
        ({"img_size": "(64, 0)"}, "img_size"),
        ({"img_size": "(64, True)"}, "img_size"),
        ({"img_size": "(64, 10000000)"}, "img_size"),
        ({"img_size": "((64, 64), 64)"}, "img_size"),
        ({"img_size": f"{'(' * 8}1,{'),' * 7})"}, "too deeply nested lists"),
        ({"enc_depth": "'" + "x" * 5000 + "'"}, "enc_depth"),
        ({"output_mode": "'\\x1b[31m\\n'"}, "output_mode"),
        ({"x" * 5000: "1"}, "unknown options"),
        ({"y" * 5000: "f()"}, "not a literal"),
    ],
)
def test_unknown_and_unsupported_options_are_listed(changes, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        parse_model_string(string(**changes))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


MAST3R = {"head_type": "'catmlp+dpt'", "output_mode": "'pts3d+desc12'", "two_confs": "True"}
MAST3R |= {"desc_conf_mode": "('exp', 0, inf)"}


def mast3r_string(**changes):
    return string(**{**MAST3R, "dec_depth": "4", **changes}).replace("AsymmetricCroCo3DStereo", "AsymmetricMASt3R")


def test_mast3rs_string_names_its_descriptors():
    config = parse_model_string(mast3r_string())
    assert (config.head, config.descriptor_dim, config.metric) == ("catmlp+dpt", 12, True)
    assert config.descriptor_confidence_range == (0.0, math.inf) and config.confidence_range == (1.0, math.inf)
    # Without a mode of its own, the descriptors' confidence has the points'.
    assert parse_model_string(mast3r_string(desc_conf_mode=None)).descriptor_confidence_range == (1.0, math.inf)
    assert not parse_model_string(mast3r_string(metric="False")).metric
    assert parse_model_string(string(metric="True")).metric and not CONFIG.metric


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (string(), None),
        (string().replace("AsymmetricCroCo3DStereo", "AsymmetricMASt3R"), "AsymmetricMASt3R with the head 'linear'"),
        (string(**MAST3R, dec_depth="4"), "AsymmetricCroCo3DStereo with the head 'catmlp.dpt'"),
        (mast3r_string(two_confs="False"), "two_confs=True"),
        (mast3r_string(two_confs=None), "two_confs=True"),
        (mast3r_string(output_mode="'pts3d+desc0'"), "output_mode='pts3d.desc0'"),
        (mast3r_string(output_mode="'pts3d+desc9999'"), "output_mode"),
        (mast3r_string(desc_conf_mode="('sigmoid', 0, 1)"), "desc_conf_mode"),
        (string(two_confs="True"), "unknown options: 'two_confs'"),
    ],
)
def test_a_network_named_as_another_is_refused(text, words):
    if words is None:
        assert parse_model_string(text) == CONFIG
        return
    with pytest.raises(CheckpointError, match=words):
        parse_model_string(text)


def test_names_from_json_are_printed_safely():
    arguments = {"pos_embed": "RoPE100", "img_size": [64, 96], "head_type": "linear"}
    arguments |= {name: int(value) for name, value in ARGUMENTS.items() if value.isdigit()}
    assert parse_arguments(arguments) == CONFIG
    with pytest.raises(CheckpointError, match="unknown options") as caught:
        parse_arguments({**arguments, "a\n\x1b[2J": 1})
    assert str(caught.value).isprintable()


def test_too_deeply_nested_lists_are_refused():
    nested = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(CheckpointError, match="too deeply nested lists"):
        parse_arguments({"img_size": nested})
