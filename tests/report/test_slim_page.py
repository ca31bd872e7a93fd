"""The page of a slimmed network."""

import torch
from torch import nn

import prunus
from prunus.report.slim import write_slim_page


def test_page_has_widths_couplings_and_times_and_escapes_names(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(torch.relu(self.first(x) + self.second(x)))

    model = Net()
    plan = prunus.slim(model, torch.zeros(1, 4), density=0.25)
    times = [{"batch_size": 1, "before_ms": 3.0, "after_ms": 1.5}]
    for name in ("a.html", "b.html"):
        write_slim_page(tmp_path / name, plan.report, title="<b>x", times=times, settings={"criterion": "l2"})
        plan = prunus.slim(model, torch.zeros(1, 4), density=0.25)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    for text in (
        '<span style="width: 100.0%"><span style="width: 25.0%">',
        f"<strong>{100 * plan.report.macs[1] / plan.report.macs[0]:.1f} %</strong>",
        "<td>16 → 4</td>",
        "<dt>first.weight</dt><dd>first, second</dd>",
        "3.00 ms → 1.50 ms, measured",
        "the tensor is an output of the model",
    ):
        assert text in page


def test_page_of_a_network_without_couplings_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    write_slim_page(tmp_path / "a.html", prunus.slim(model, torch.zeros(1, 4), density=1.0).report, title="a")
    assert "No two layers are coupled." in (tmp_path / "a.html").read_text(encoding="utf-8")
