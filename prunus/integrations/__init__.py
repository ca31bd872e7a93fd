"""Pruning in the training loops of other libraries; each module needs the library whose name it has."""
