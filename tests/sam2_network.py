"""A SAM 2 network with random weights, as small as the library allows, for tests that need PyTorch."""

import pathlib


def save_small_sam2(folder: pathlib.Path) -> None:
    """Writes it in the form of `transformers`. It sees 64 pixels, and always finds something of its object."""
    import torch
    import transformers

    size, width = 64, 128  # the library's memory has 64 channels, the rest a multiple of them
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[size, size],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_positional_embedding_background_size=[4, 4],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[],
    )
    config = transformers.Sam2VideoConfig(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[size // k, size // k] for k in (4, 8, 16)],
            fpn_hidden_size=width,
        ),
        prompt_encoder_config={"hidden_size": width, "image_size": size, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "iou_head_hidden_dim": 16,
        },
        image_size=size,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[size // 16, size // 16],
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
    )
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Sam2VideoModel(config)
        with torch.no_grad():
            for parameter in model.parameters():  # the library's own are so small that nothing depends on the input
                parameter.add_(0.1 * torch.randn(parameter.shape))
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100.0)
    model.save_pretrained(folder)
    if bars:
        transformers.utils.logging.enable_progress_bar()
