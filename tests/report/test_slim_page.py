"""The page of a slimmed network."""

import torch
from torch import nn

import prunus
from prunus.pruning.structured.latency import LatencyComparison
from prunus.report.slim import write_slim_page
from prunus.training import Evaluation


def test_page_has_widths_couplings_and_times_and_escapes_names(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(torch.relu(self.first(x) + self.second(x)))

    model = Net()
    plan = prunus.slim(model, torch.zeros(1, 4), density=0.25)
    times = [(32, LatencyComparison(0.003, 0.0015, (1.85, 2.0, 2.25), 20))]
    tests = Evaluation(0.1, 98.5, 10_000), Evaluation(0.2, 98.25, 10_000)
    for name in ("a.html", "b.html"):
        settings = {"criterion": "l2"}
        write_slim_page(
            tmp_path / name, plan.report, title="<b>x", times=times, tests=tests, settings=settings
        )
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
        "Speed at batch 32</span><strong>2.00×</strong><span>quartiles 1.85 to 2.25; 3.00 ms → 1.50 ms",
        "Test error</span><strong>1.75 %</strong><span>1.50 % before the removal; 10,000 examples",
        "the tensor is an output of the model",
    ):
        assert text in page


def test_page_of_a_network_without_couplings_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    write_slim_page(tmp_path / "a.html", prunus.slim(model, torch.zeros(1, 4), density=1.0).report, title="a")
    assert "No two layers are coupled." in (tmp_path / "a.html").read_text(encoding="utf-8")
