"""Models to ONNX files and layers from them; what it needs (`pip install torchrnn[onnx]`) is imported at the first call."""

from torchrnn.onnx.exporting import export
from torchrnn.onnx.reading import from_onnx
from torchrnn.onnx.table import translation_table

__all__ = ["export", "from_onnx", "translation_table"]
