"""Policies without a pipeline: a timm model, some images, a limit. What `seam search`, `finetune`, `evaluate` and
`export` call, and the Python API:

    import seam.tool as seam, timm

    model = timm.create_model("resnet18", num_classes=10).eval()            # your weights
    policy = seam.search(model, seam.open_images("path/to/folder", model), "w4a4")
    quantized = seam.quantize(model, policy)                                # a module that trains
    seam.calibrate(quantized, seam.open_images("path/to/folder", model, full_size=True))
    seam.evaluate(quantized, seam.open_images("path/to/folder", model, "test", full_size=True))
    seam.export(quantized, "model.onnx", seam.open_images("path/to/folder", model, "test", full_size=True))
"""

from seam.io import save_tensors
from seam.quant.finetuned import is_finetuned, load_finetuned
from seam.tool.export import export
from seam.tool.images import held_out, input_size, open_images, preprocessing, set_preprocessing
from seam.tool.models import model_of, open_model
from seam.tool.network import calibrate, check_classes, evaluate, file_mb, finetune, quantize
from seam.tool.onnx_file import OnnxFile
from seam.tool.search import search

__all__ = [
    "OnnxFile",
    "calibrate",
    "check_classes",
    "evaluate",
    "export",
    "file_mb",
    "finetune",
    "held_out",
    "input_size",
    "is_finetuned",
    "load_finetuned",
    "model_of",
    "open_images",
    "open_model",
    "preprocessing",
    "quantize",
    "save_tensors",
    "search",
    "set_preprocessing",
]
