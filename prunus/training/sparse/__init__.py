"""Training and evaluation whose cost falls with density: compiled kernels that compute with kept weights only."""
