"""Pruning: criteria and scopes, pruning methods, `prune` in one call, and pruning with retraining in rounds."""
