"""Weight sharing: k-means of the kept weights, and training of the centroids."""

from prunus.compression.quantization.codebook import CodebookTensor, quantize_weights
from prunus.compression.quantization.finetuning import CodebookConstraint, centroid_gradient

__all__ = ["CodebookConstraint", "CodebookTensor", "centroid_gradient", "quantize_weights"]
