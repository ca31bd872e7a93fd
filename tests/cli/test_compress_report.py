"""What `prunus compress` prints before its work."""

from torch import nn

from prunus.cli.compress_report import _announce
from prunus.compression.presets import COMPRESSION_RECIPES


def test_frozen_weights_are_listed_and_leave_the_warning_to_the_compression(capsys):
    """A warning would be an error here."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    assert _announce(model, COMPRESSION_RECIPES["default"].replace(rounds=2), is_search=False) == 2
    assert capsys.readouterr().err.splitlines() == [
        "will prune 1.weight (2 × 3), and quantize it to 5 bits",
        "will rank them together, to density 0.1 of all",
        "not pruned: 0.weight, 0.bias, 1.bias",
    ]
