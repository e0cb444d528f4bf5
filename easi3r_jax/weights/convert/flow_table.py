"""The conversion tables of RAFT and SEA-RAFT: tensors of a released checkpoint → parameters of our network."""

from __future__ import annotations

from collections.abc import Collection

from easi3r_jax.models.config import FlowConfig
from easi3r_jax.weights.convert.rules import CONV, LINEAR, Rule, layer, norm

LICENCE = "The terms of the source apply; the released RAFT and SEA-RAFT are under the BSD 3-Clause licence."


def _conv(source: str, target: str) -> list[Rule]:
    return layer(source, target, CONV)


def _batch_norm(source: str, target: str, alias: str | None = None) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [
        Rule(f"{source}.{theirs}", f"{target}.{ours}", alias=f"{alias}.{theirs}" if alias else None)
        for theirs, ours in names.items()
    ]


def _encoder(source: str, target: str, stages: tuple[int, ...], convs: int, norms: str | None, out: str) -> list[Rule]:
    """An encoder of residual blocks. `norms`: name of its norms, if they have parameters; `out`: of its last layer."""
    rules = [*_conv(f"{source}.conv1", f"{target}.conv1"), *_conv(f"{source}.{out}", f"{target}.out")]
    if norms is not None:
        rules += _batch_norm(f"{source}.{norms}1", f"{target}.norm1")
    number = 0
    for stage, count in enumerate(stages):
        for n in range(count):
            block, ours = f"{source}.layer{stage + 1}.{n}", f"{target}.blocks.{number}"
            for k in range(1, convs + 1):
                rules += _conv(f"{block}.conv{k}", f"{ours}.convs.{k - 1}")
                rules += _batch_norm(f"{block}.{norms}{k}", f"{ours}.norms.{k - 1}") if norms is not None else []
            if stage and not n:
                rules += _conv(f"{block}.downsample.0", f"{ours}.shortcut")
                if norms is not None:
                    rules += _batch_norm(
                        f"{block}.{norms}{convs + 1}", f"{ours}.shortcut_norm", f"{block}.downsample.1"
                    )
            number += 1
    return rules


def _motion(small: bool) -> list[Rule]:
    source = "update_block.encoder"
    rules = [*_conv(f"{source}.convf1", "motion.flow1"), *_conv(f"{source}.convf2", "motion.flow2")]
    rules += [*_conv(f"{source}.conv", "motion.out"), *_conv(f"{source}.convc1", "motion.correlation.0")]
    return rules if small else [*rules, *_conv(f"{source}.convc2", "motion.correlation.1")]


def _raft(small: bool) -> list[Rule]:
    convs = 3 if small else 2
    rules = [
        *_encoder("fnet", "features", (2, 2, 2), convs, None, "conv2"),
        *_encoder("cnet", "context", (2, 2, 2), convs, None if small else "norm", "conv2"),
        *_motion(small),
        *_conv("update_block.flow_head.conv1", "flow.conv1"),
        *_conv("update_block.flow_head.conv2", "flow.conv2"),
    ]
    for n, suffix in enumerate(("",) if small else ("1", "2")):
        for theirs, ours in (("convz", "update"), ("convr", "reset"), ("convq", "candidate")):
            rules += _conv(f"update_block.gru.{theirs}{suffix}", f"grus.{n}.{ours}")
    if not small:
        rules += [*_conv("update_block.mask.0", "upsampling.conv1"), *_conv("update_block.mask.2", "upsampling.conv2")]
    return rules


def _sea_raft() -> list[Rule]:
    rules = [
        *_encoder("fnet", "features", (3, 4, 6), 2, "bn", "final_conv"),
        *_encoder("cnet", "context", (3, 4, 6), 2, "bn", "final_conv"),
        *_motion(small=False),
        *_conv("init_conv", "split"),
    ]
    for source, target in (("flow_head", "flow"), ("upsample_weight", "upsampling")):
        rules += [*_conv(f"{source}.0", f"{target}.conv1"), *_conv(f"{source}.2", f"{target}.conv2")]
    for n in range(2):
        source, target = f"update_block.refine.{n}", f"refine.{n}"
        rules += [
            *_conv(f"{source}.dwconv", f"{target}.depthwise"),
            *norm(f"{source}.norm", f"{target}.norm"),
            Rule(f"{source}.gamma", f"{target}.gamma"),
            *_conv(f"{source}.final", f"{target}.out"),
        ]
        for theirs, ours in (("pwconv1", "fc1"), ("pwconv2", "fc2")):
            rules += layer(f"{source}.{theirs}", f"{target}.{ours}", LINEAR)
    return rules


def network_of(names: Collection[str]) -> FlowConfig | None:
    """The flow network whose state dict has these names, or None."""
    if "fnet.conv1.weight" not in names:
        return None
    if "init_conv.weight" in names:
        return FlowConfig("sea-raft")
    return FlowConfig("raft-small" if "fnet.layer1.0.conv3.weight" in names else "raft")


def rules(config: FlowConfig) -> list[Rule]:
    """The table for a flow network."""
    return _sea_raft() if config.network == "sea-raft" else _raft(config.network == "raft-small")
