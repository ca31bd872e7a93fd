"""Weight sharing: k-means of the kept weights, and training of the centroids."""

from prunus.compression.sharing.finetune import Tied, centroid_gradient
from prunus.compression.sharing.share import Shared, share

__all__ = ["Shared", "Tied", "centroid_gradient", "share"]
