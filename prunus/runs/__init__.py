"""Runs: frozen specs with an identity, one folder each, and a store of requested, running and finished runs."""
