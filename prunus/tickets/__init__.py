"""Lottery tickets: masks, each with the weights that its training starts from."""
