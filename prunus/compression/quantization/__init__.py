"""Quantization to codebooks (weight sharing): k-means of the remaining weights, and training of the centroids."""

from prunus.compression.quantization.codebook import CodebookTensor, quantize_weights
from prunus.compression.quantization.finetuning import CodebookConstraint, centroid_gradient

__all__ = ["CodebookConstraint", "CodebookTensor", "centroid_gradient", "quantize_weights"]
