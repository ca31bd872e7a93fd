"""prunus: make trained neural networks small, and show why small networks train."""
