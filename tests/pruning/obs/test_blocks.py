"""Hessians block by block are those of all layers at once."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.errors import ModelError, StatisticsError
from prunus.pruning.methods import METHODS
from prunus.pruning.obs import blocks
from prunus.pruning.obs.blocks import hessians_by_block
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import tiny_networks
from layers import draw

WIDTH = 8


class Block(nn.Module):
    """Attention and two layers, as in a transformer; `bias` is an argument that all blocks are given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor, keys: object | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        if keys is not None:
            keys.append(k)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
        return x + self.down(self.up(x).relu())


class Keys:
    """An object that blocks change."""

    def append(self, keys: Tensor) -> None:
        """Nothing is stored here."""


class Network(nn.Module):
    """Three blocks between an embedding and a head."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind, self.keys = kind, Keys()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        tiny_networks.randomize_parameters(self, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.embed(x)
        bias = x.new_zeros(len(x), x.shape[1], x.shape[1])
        blocks = list(self.blocks)[:: -1 if self.kind == "reversed" else 1]
        for number, block in enumerate(blocks):
            if self.kind == "other argument":
                bias = bias + number
            x = block(x, bias=bias, keys=self.keys if self.kind == "object" else None)
            if self.kind == "sum with the first":
                x = x + first
            elif self.kind == "twice":
                x = block(x, bias=bias)
        return self.head(x)


@pytest.fixture
def inputs() -> Tensor:
    return draw(14, 4, 5).float()


def parts_of(model: nn.Module, weights, inputs, **options):
    return list(hessians_by_block(model, weights, inputs, batch_size=4, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_block_has_the_hessians_of_all_at_once(inputs, dtype):
    model, inputs = Network().to(dtype), inputs.to(dtype)
    weights, state = prunable_weights(model), {n: t.clone() for n, t in model.state_dict().items()}
    together = layer_hessians(model, weights, inputs, batch_size=4)
    parts = parts_of(model, weights, inputs)
    assert [sorted({name.split(".")[1] for name in part}) for part in parts[1:]] == [["0"], ["1"], ["2"]]
    assert sorted(parts[0]) == ["embed.weight", "head.weight"]
    for part in parts:
        for name, hessian in part.items():
            torch.testing.assert_close(hessian.hessian, together[name].hessian, rtol=1e-6, atol=1e-7)
            assert hessian.damping == pytest.approx(together[name].damping)
            assert hessian.num_vectors == together[name].num_vectors
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["reversed", "other argument", "sum with the first", "twice", "object"])
def test_blocks_that_do_not_follow_one_another_are_examined_at_once(kind, inputs):
    model = Network(kind)
    weights = prunable_weights(model)
    together = layer_hessians(model, weights, inputs, batch_size=4)
    (only,) = parts_of(model, weights, inputs)
    assert only.keys() == together.keys()
    assert all(torch.equal(only[name].hessian, together[name].hessian) for name in only)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["obs", "sparse_gpt", "admm"])
@pytest.mark.parametrize("scope", ["layer", "2:4", "global"])
def test_methods_prune_as_with_all_hessians_at_once(name, scope, inputs):
    model = Network()
    weights = prunable_weights(model, exclude=["embed.*"])
    by_block = METHODS[name].prune(model, weights, 0.5, scope, inputs)
    model.blocks = Hidden(model.blocks)
    hidden = {n.replace("blocks.", "blocks.hidden_."): w for n, w in weights.items()}
    at_once = METHODS[name].prune(model, hidden, 0.5, scope, inputs)
    for (key, mask), weight in zip(at_once.masks.items(), at_once.weights.values(), strict=True):
        key = key.replace("hidden_.", "")
        assert torch.equal(by_block.masks[key], mask)
        torch.testing.assert_close(by_block.weights[key], weight, rtol=1e-5, atol=1e-5)
    assert by_block.predicted_increase == pytest.approx(at_once.predicted_increase, rel=1e-5)
    assert list(by_block.weights) == list(weights)


class Hidden(nn.Module):
    """A list of blocks that is no ModuleList."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.hidden_ = nn.Module()
        for name, block in blocks.named_children():
            self.hidden_.add_module(name, block)

    def __iter__(self):
        return self.hidden_.children()


def test_earlier_masks_are_those_of_the_network_that_inputs_pass(inputs):
    model = Network()
    weights = {n: w for n, w in prunable_weights(model).items() if n.startswith("blocks")}
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    within = SCOPES["layer"].select(scores, 0.6)
    done = METHODS["sparse_gpt"].prune(model, weights, 0.3, "layer", inputs, within=within)
    with torch.no_grad():
        for name, mask in within.items():
            model.get_parameter(name).mul_(mask)
    again = METHODS["sparse_gpt"].prune(model, weights, 0.3, "layer", inputs, within=within)
    assert all(torch.equal(done.weights[name], again.weights[name]) for name in weights)


def test_weight_that_its_block_uses_elsewhere_is_refused(inputs):
    class Tied(Block):
        def forward(self, x: Tensor, **arguments: object) -> Tensor:
            return super().forward(x, **arguments) + x @ self.out.weight

    model = Network()
    model.blocks = nn.ModuleList([Tied() for _ in range(3)])
    with pytest.raises(ModelError, match=r"'blocks\.0\.out\.weight' to be used by its layer alone"):
        METHODS["admm"].prune(model, prunable_weights(model), 0.5, "layer", inputs)


def test_inputs_that_the_model_does_not_take_are_refused():
    model = Network()
    with pytest.raises(StatisticsError, match="does not take calibration inputs"):
        METHODS["admm"].prune(model, prunable_weights(model), 0.5, "layer", torch.ones(4, 4, 6))


@pytest.mark.slow
def test_block_of_a_hugging_face_model_with_a_cache_is_pruned_alone():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = {
        "input_ids": torch.randint(0, 40, (12, 6)),
        "attention_mask": torch.ones(12, 6, dtype=torch.int64),
    }
    weights = prunable_weights(model, exclude=["lm_head*", "*embed*"])
    together = layer_hessians(model, weights, tokens)
    parts = parts_of(model, weights, tokens)
    assert [len(part) for part in parts] == [7, 7, 7]
    for part in parts:
        for name, hessian in part.items():
            torch.testing.assert_close(hessian.hessian, together[name].hessian, rtol=1e-4, atol=1e-6)
    pruned = prunus.prune(
        model, 0.5, criterion="admm", scope="2:4", calibration=tokens, exclude=["lm_head*", "*embed*"]
    )
    assert pruned.report.density == 0.5


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", ["sparse_gpt", "admm"])
def test_no_hessian_of_an_earlier_layer_is_in_memory(name, inputs, monkeypatch):
    method, earlier, names = METHODS[name], [], []
    prune_layers = type(method)._prune_layers

    def prune(self, task):
        gc.collect()
        assert not any(hessian() for hessian in earlier)
        earlier.extend(weakref.ref(hessian) for hessian in task.hessians.values())
        names.extend(task.hessians)
        return prune_layers(self, task)

    monkeypatch.setattr(type(method), "_prune_layers", prune)
    weights = prunable_weights(Network(), exclude=["embed.*", "head.*"])
    method.prune(Network(), weights, 0.5, "layer", inputs)
    assert names == list(weights)
    assert len(earlier) == len(names)


def test_forward_passes_have_few_examples(inputs, monkeypatch):
    model, sizes = Network(), []
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    monkeypatch.setattr(blocks, "MAX_PASSED_ON", 3 * 4 * WIDTH)
    list(hessians_by_block(model, prunable_weights(model), inputs))
    assert max(sizes) == 3
    monkeypatch.setattr(blocks, "MAX_PASSED_ON", 1)  # one example is always passed
    sizes.clear()
    list(hessians_by_block(model, prunable_weights(model), inputs))
    assert min(sizes) == 1


def test_no_parameter_is_copied(inputs, monkeypatch):
    model = Network()
    memory = {p.data_ptr() for p in model.parameters()}
    for function in ("layer_hessians", "ProductSum"):
        original = getattr(blocks, function)

        def collect(*arguments, original=original, **options):
            modules = [a for a in arguments if isinstance(a, nn.Module)]
            assert {p.data_ptr() for module in modules for p in module.parameters()} <= memory
            return original(*arguments, **options)

        monkeypatch.setattr(blocks, function, collect)
    pointers = []
    model.blocks[1].register_forward_pre_hook(
        lambda module, arguments: pointers.extend(p.data_ptr() for p in module.parameters())
    )
    list(hessians_by_block(model, prunable_weights(model), inputs))
    assert set(pointers) <= memory


def test_refit_and_report_are_those_of_all_layers_at_once(inputs):
    errors = []
    for hide in (False, True):
        model = Network()
        if hide:
            model.blocks = Hidden(model.blocks)
        report = prunus.prune(model, 0.5, calibration=inputs, refit=True).report
        errors.append([(row.error_zeroed, row.error_updated) for row in report.rows])
        assert all(after <= before for before, after in errors[-1])
    assert errors[0] == [pytest.approx(row, rel=1e-4) for row in errors[1]]
