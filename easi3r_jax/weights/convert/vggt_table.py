"""The conversion table of VGGT: tensors of a released checkpoint → parameters of our network."""

from __future__ import annotations

from easi3r_jax.models.vggt.config import VGGTConfig
from easi3r_jax.weights.convert.rules import CONV, LINEAR, PATCH, POINTWISE, TRANSPOSED, Rule, Shape, layer, norm

LICENCE = (
    "The terms of the source apply; the released VGGT-1B is under Meta's VGGT research licence (non-commercial), "
    "VGGT-1B-Commercial under a licence of its own, which allows commercial use but for its exceptions."
)


def _block(source: str, target: str, *, normed: bool) -> list[Rule]:
    rules = [
        *norm(f"{source}.norm1", f"{target}.norm1"),
        *layer(f"{source}.attn.qkv", f"{target}.attention.qkv", LINEAR),
        *layer(f"{source}.attn.proj", f"{target}.attention.proj", LINEAR),
        Rule(f"{source}.ls1.gamma", f"{target}.scale1"),
        *norm(f"{source}.norm2", f"{target}.norm2"),
        *layer(f"{source}.mlp.fc1", f"{target}.mlp.fc1", LINEAR),
        *layer(f"{source}.mlp.fc2", f"{target}.mlp.fc2", LINEAR),
        Rule(f"{source}.ls2.gamma", f"{target}.scale2"),
    ]
    for kind in ("q_norm", "k_norm") if normed else ():
        rules += norm(f"{source}.attn.{kind}", f"{target}.attention.{kind}")
    return rules


def _encoder(config: VGGTConfig) -> list[Rule]:
    source = "aggregator.patch_embed"
    if config.encoder == "conv":
        return layer(f"{source}.proj", "encoder.patch_embed", PATCH)
    return [
        *layer(f"{source}.patch_embed.proj", "encoder.patch_embed", PATCH),
        Rule(f"{source}.cls_token", "encoder.cls_token"),
        Rule(f"{source}.register_tokens", "encoder.register_tokens"),
        Rule(f"{source}.pos_embed", "encoder.positions"),
        *_block(f"{source}.blocks.{{}}", "encoder.blocks", normed=False),
        *norm(f"{source}.norm", "encoder.norm"),
    ]


def _aggregator() -> list[Rule]:
    rules = [Rule(f"aggregator.{name}", f"aggregator.{name}") for name in ("camera_token", "register_token")]
    for stack in ("frame_blocks", "global_blocks"):
        rules += _block(f"aggregator.{stack}.{{}}", f"aggregator.{stack}", normed=True)
    return rules


def _camera_head() -> list[Rule]:
    head = "camera_head"
    return [
        Rule(f"{head}.empty_pose_tokens", f"{head}.empty_pose"),
        *_block(f"{head}.trunk.{{}}", f"{head}.trunk", normed=False),
        *norm(f"{head}.token_norm", f"{head}.token_norm"),
        *norm(f"{head}.trunk_norm", f"{head}.trunk_norm"),
        *layer(f"{head}.embed_pose", f"{head}.embed_pose", LINEAR),
        *layer(f"{head}.poseLN_modulation.1", f"{head}.modulation", LINEAR),
        *layer(f"{head}.pose_branch.fc1", f"{head}.fc1", LINEAR),
        *layer(f"{head}.pose_branch.fc2", f"{head}.fc2", LINEAR),
    ]


def _dense_head(source: str, target: str, *, out: bool) -> list[Rule]:
    scratch = f"{source}.scratch"
    rules = [
        *norm(f"{source}.norm", f"{target}.norm"),
        *layer(f"{source}.resize_layers.0", f"{target}.enlarge4", TRANSPOSED),
        *layer(f"{source}.resize_layers.1", f"{target}.enlarge2", TRANSPOSED),
        *layer(f"{source}.resize_layers.3", f"{target}.shrink", CONV),
        *layer(f"{scratch}.output_conv1", f"{target}.conv1", CONV),
    ]
    if out:
        rules += layer(f"{scratch}.output_conv2.0", f"{target}.conv2", CONV)
        rules += layer(f"{scratch}.output_conv2.2", f"{target}.out", POINTWISE)
    for level in range(4):
        fusion, ours = f"{scratch}.refinenet{level + 1}", f"{target}.fusions.{level}"
        rules += layer(f"{source}.projects.{level}", f"{target}.project.{level}", POINTWISE)
        rules += [Rule(f"{scratch}.layer{level + 1}_rn.weight", f"{target}.level_convs.{level}.kernel", CONV)]
        rules += layer(f"{fusion}.out_conv", f"{ours}.out_conv", POINTWISE)
        for unit in (1, 2) if level < 3 else (2,):  # the coarsest level adds to nothing
            for conv in (1, 2):
                rules += layer(f"{fusion}.resConfUnit{unit}.conv{conv}", f"{ours}.residual{unit}.conv{conv}", CONV)
    return rules


def _track_block(source: str, target: str, *, cross: bool) -> list[Rule]:
    attention = f"{source}.cross_attn" if cross else f"{source}.attn"
    return [
        *norm(f"{source}.norm1", f"{target}.norm1"),
        *(norm(f"{source}.norm_context", f"{target}.norm_context") if cross else ()),
        Rule(f"{attention}.in_proj_weight", f"{target}.qkv.kernel", LINEAR),
        Rule(f"{attention}.in_proj_bias", f"{target}.qkv.bias"),
        *layer(f"{attention}.out_proj", f"{target}.proj", LINEAR),
        *norm(f"{source}.norm2", f"{target}.norm2"),
        *layer(f"{source}.mlp.fc1", f"{target}.mlp.fc1", LINEAR),
        *layer(f"{source}.mlp.fc2", f"{target}.mlp.fc2", LINEAR),
    ]


def _track_head() -> list[Rule]:
    tracker, former = "track_head.tracker", "track_head.tracker.updateformer"
    head, ours = "track_head", "track_head.former"
    rules = [
        *_dense_head(f"{head}.feature_extractor", f"{head}.extractor", out=False),
        *norm(f"{tracker}.fmap_norm", f"{head}.map_norm"),
        *layer(f"{tracker}.corr_mlp.fc1", f"{head}.correlation1", LINEAR),
        *layer(f"{tracker}.corr_mlp.fc2", f"{head}.correlation2", LINEAR),
        Rule(f"{tracker}.query_ref_token", f"{head}.reference_token"),
        *norm(f"{former}.input_norm", f"{ours}.input_norm"),
        *layer(f"{former}.input_transform", f"{ours}.input_transform", LINEAR),
        Rule(f"{former}.virual_tracks", f"{ours}.virtual_tracks"),  # so spelled in the released files
        *norm(f"{former}.output_norm", f"{ours}.output_norm"),
        *layer(f"{former}.flow_head", f"{ours}.flow_head", LINEAR),
        *norm(f"{tracker}.ffeat_norm", f"{head}.feature_norm"),
        *layer(f"{tracker}.ffeat_updater.0", f"{head}.feature_update", LINEAR),
        *layer(f"{tracker}.vis_predictor.0", f"{head}.visibility", LINEAR),
        *layer(f"{tracker}.conf_predictor.0", f"{head}.confidence", LINEAR),
    ]
    for theirs, name in (
        ("time", "time"),
        ("space_virtual2point", "from_points"),
        ("space_virtual", "virtual"),
        ("space_point2virtual", "to_points"),
    ):
        cross = name.endswith("points")
        rules += _track_block(f"{former}.{theirs}_blocks.{{}}", f"{ours}.{name}", cross=cross)
    return rules


def rules(config: VGGTConfig) -> list[Rule]:
    """The table for a network of this architecture."""
    table = [*_encoder(config), *_aggregator()]
    table += _camera_head() if "camera" in config.heads else []
    for name in ("depth", "point"):
        table += _dense_head(f"{name}_head", f"{name}_head", out=True) if name in config.heads else []
    return table + (_track_head() if "track" in config.heads else [])


def unused(config: VGGTConfig) -> dict[str, Shape]:
    """Tensors in every checkpoint that inference does not need: checked like the others, then dropped."""
    if config.encoder == "conv":
        return {}
    return {"aggregator.patch_embed.mask_token": (1, config.dim)}  # of the pretraining
