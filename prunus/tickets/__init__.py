"""Lottery tickets: a mask, with the weights it starts from."""
