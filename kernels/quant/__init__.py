"""Quantized matrix products, and what quantizes."""

from .grids import distortion, lloyd_max, uniform
from .packed import NF4, Outliers, PackedWeights
from .product import quantized_matmul
from .quantize import QuantizedMatrix, quantize_matrix
from .rotate import hadamard, rotate, rotation_signs, unrotate
from .scheme import Scheme

__all__ = [
    "NF4",
    "Outliers",
    "PackedWeights",
    "QuantizedMatrix",
    "Scheme",
    "distortion",
    "hadamard",
    "lloyd_max",
    "quantize_matrix",
    "quantized_matmul",
    "rotate",
    "rotation_signs",
    "uniform",
    "unrotate",
]
