"""Models to ONNX files, and layers from them; the packages of ``torchrnn[onnx]`` are imported at the first call."""

from torchrnn.onnx.exporting import export
from torchrnn.onnx.reading import from_onnx
from torchrnn.onnx.table import translation_table

__all__ = ["export", "from_onnx", "translation_table"]
