"""The conversion table of DUSt3R and MASt3R: tensors of a released checkpoint → parameters of our network."""

from __future__ import annotations

from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.weights.convert.rules import CONV, LINEAR, PATCH, POINTWISE, TRANSPOSED, Rule, Shape, layer, norm


def _self_attention(source: str, target: str, name: str) -> list[Rule]:
    return [
        *norm(f"{source}.norm1", f"{target}.norm1"),
        *layer(f"{source}.attn.qkv", f"{target}.{name}.qkv", LINEAR),
        *layer(f"{source}.attn.proj", f"{target}.{name}.proj", LINEAR),
        *norm(f"{source}.norm2", f"{target}.norm2"),
        *layer(f"{source}.mlp.fc1", f"{target}.mlp.fc1", LINEAR),
        *layer(f"{source}.mlp.fc2", f"{target}.mlp.fc2", LINEAR),
    ]


def _decoder_branch(source: str, target: str) -> list[Rule]:
    cross_source, cross_target = f"{source}.cross_attn", f"{target}.cross_attention"
    return [
        *_self_attention(source, target, "self_attention"),
        *norm(f"{source}.norm_y", f"{target}.norm_y"),
        *layer(f"{cross_source}.projq", f"{cross_target}.q", LINEAR),
        *layer(f"{cross_source}.projk", f"{cross_target}.k", LINEAR),
        *layer(f"{cross_source}.projv", f"{cross_target}.v", LINEAR),
        *layer(f"{cross_source}.proj", f"{cross_target}.proj", LINEAR),
        *norm(f"{source}.norm3", f"{target}.norm3"),
    ]


def _linear_head(n: int) -> list[Rule]:
    return layer(f"downstream_head{n}.proj", f"head{n}.proj", LINEAR)


def _dpt_head(n: int) -> list[Rule]:
    source, target = f"downstream_head{n}.dpt", f"head{n}"
    resample, scratch = f"{source}.act_postprocess", f"{source}.scratch"
    rules = [
        *layer(f"{resample}.0.1", f"{target}.enlarge4", TRANSPOSED),
        *layer(f"{resample}.1.1", f"{target}.enlarge2", TRANSPOSED),
        *layer(f"{resample}.3.1", f"{target}.shrink", CONV),
        *layer(f"{source}.head.0", f"{target}.conv1", CONV),
        *layer(f"{source}.head.2", f"{target}.conv2", CONV),
        *layer(f"{source}.head.4", f"{target}.out", POINTWISE),
    ]
    for level in range(4):
        fusion, fusion_target = f"{scratch}.refinenet{level + 1}", f"{target}.fusions.{level}"
        rules += layer(f"{resample}.{level}.0", f"{target}.project.{level}", POINTWISE)
        rules += [
            Rule(
                f"{scratch}.layer{level + 1}_rn.weight",
                f"{target}.level_convs.{level}.kernel",
                CONV,
                alias=f"{scratch}.layer_rn.{level}.weight",
            )
        ]
        rules += layer(f"{fusion}.out_conv", f"{fusion_target}.out_conv", POINTWISE)
        for unit in (1, 2) if level < 3 else (2,):  # the coarsest level adds to nothing: unit 1 is unused
            for conv in (1, 2):
                unit_source = f"{fusion}.resConfUnit{unit}.conv{conv}"
                rules += layer(unit_source, f"{fusion_target}.residual{unit}.conv{conv}", CONV)
    return rules


def _local_features(n: int) -> list[Rule]:
    source = f"downstream_head{n}.head_local_features"
    return [rule for fc in ("fc1", "fc2") for rule in layer(f"{source}.{fc}", f"local{n}.{fc}", LINEAR)]


def rules(config: DUSt3RConfig) -> list[Rule]:
    """The table for a network of this architecture."""
    head = _dpt_head if config.is_dpt else _linear_head
    local = [*_local_features(1), *_local_features(2)] if config.descriptor_dim else []
    return [
        *layer("patch_embed.proj", "encoder.patch_embed", PATCH),
        *_self_attention("enc_blocks.{}", "encoder.blocks", "attention"),
        *norm("enc_norm", "encoder.norm"),
        *layer("decoder_embed", "decoder.embed", LINEAR),
        *_decoder_branch("dec_blocks.{}", "decoder.branch1"),
        *_decoder_branch("dec_blocks2.{}", "decoder.branch2"),
        *norm("dec_norm", "decoder.norm"),
        *head(1),
        *head(2),
        *local,
    ]


def unused(config: DUSt3RConfig) -> dict[str, Shape]:
    """Tensors in every checkpoint that inference does not need: checked like the others, then dropped."""
    shapes: dict[str, Shape] = {"mask_token": (1, 1, config.dec_dim)}  # of the pretraining
    if config.is_dpt:
        for n in (1, 2):
            for conv in (1, 2):
                name = f"downstream_head{n}.dpt.scratch.refinenet4.resConfUnit1.conv{conv}"
                shapes |= {f"{name}.weight": (256, 256, 3, 3), f"{name}.bias": (256,)}
    return shapes
