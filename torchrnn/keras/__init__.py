"""Keras's recurrent layers and their weights to ours, and back."""

from torchrnn.keras.back import to_keras
from torchrnn.keras.load import from_keras
from torchrnn.keras.stack import Stack

__all__ = ["Stack", "from_keras", "to_keras"]
