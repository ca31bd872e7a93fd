"""Reports: the page of a compressed network, figures of experiments, and statistics over seeds."""
