"""Deep Compression: pruning, quantization by k-means, entropy coding, and the container file."""
