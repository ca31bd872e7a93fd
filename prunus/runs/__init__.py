"""Runs: frozen specs with an identity, a folder each, and a store of what is finished, under way and wanted."""
