"""A dozen architectures of timm, small enough to be tested, each with something of its own."""

from functools import partial

import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2

from seam.models.build import build
from seam.settings import Model

SIZE = (3, 32, 32)
SWIN = {"img_size": 32, "window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}
MODELS = {  # name: (options, a layer that must be searched)
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, "blocks.0.attn.qkv"),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, "blocks.0.mlp.fc1"),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}, "blocks.0.attn.qkv"),
    "swin_tiny_patch4_window7_224": (SWIN, "layers.1.downsample.reduction"),
    "swinv2_tiny_window8_256": (SWIN, "layers.0.blocks.0.attn.qkv"),
    "test_convnext": ({}, "stages.0.blocks.0.conv_dw"),
    "mobilenetv3_small_050": ({}, "blocks.0.0.se.conv_reduce"),
    "mobilenetv4_conv_small_035": ({}, "conv_head"),
    "tf_efficientnet_lite0": ({}, "blocks.1.0.conv_dw"),
    "regnetx_002": ({}, "s1.b1.conv2.conv"),
    "densenet121": ({"growth_rate": 8, "block_config": (2, 2)}, "features.denseblock1.denselayer1.conv1"),
    "test_nfnet": ({}, "stages.0.0.conv1"),
    "resnetv2_std": ({}, "stages.1.blocks.0.downsample.conv"),
}


def create(name):
    torch.manual_seed(0)
    if name != "resnetv2_std":
        return build(Model(name=name, kwargs=MODELS[name][0]), 10, 3)
    norm = partial(GroupNormAct, num_groups=8)
    model = ResNetV2([1, 1], channels=(64, 128), num_classes=10, stem_chs=16, conv_layer=StdConv2d, norm_layer=norm)
    return model.eval()
