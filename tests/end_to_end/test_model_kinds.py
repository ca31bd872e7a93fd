"""Kinds of models × what prunus does with a model: every cell works, or is refused in one sentence with advice.

Rows: models that users have. Columns: prune by magnitude, prune by obs, 2:4 by SparseGPT, Deep Compression, the file.
"""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import prunus
from prunus.compression.container.file_format import as_bytes
from prunus.errors import ContainerError, ModelError, PrunusError
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.views import layer_view

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}")
    for category in (
        *("DeprecationWarning", "FutureWarning", "UserWarning"),
        *("prunus.errors.NotPrunedWarning", "prunus.errors.UpdateRejectedWarning"),
        *("prunus.errors.NoEffectWarning", "prunus.errors.UnusedCentroidsWarning"),
    )
]

CLASSES = 4


class Last(nn.Module):
    """The last element of a sequence, from what a recurrent layer returns or a tensor."""

    def forward(self, output):
        output = output[0] if isinstance(output, tuple) else output
        return output[:, -1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(4, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        up = self.up(self.middle(self.down(x).relu()).relu())
        return self.last(torch.cat([up, x], 1)).mean((2, 3))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, CLASSES)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


class TiedTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.decode = nn.Linear(8, 20, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(self.hidden(self.embed(tokens[:, 0])).relu())


class RawParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.head = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head((x @ self.matrix).relu())


class Logits(nn.Module):
    """A transformers model as a module that returns logits [B, C]."""

    def __init__(self, model, last=False):
        super().__init__()
        self.inner, self.last = model, last

    def forward(self, tokens):
        logits = self.inner(input_ids=tokens).logits
        return logits[:, -1] if self.last else logits


def mlp(*middle, dtype=torch.float32):
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *middle, nn.Linear(16, CLASSES)).to(dtype)


def computed(wrap):
    return nn.Sequential(wrap(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, CLASSES))


def masked_by_torch():
    model = mlp()
    torch_prune.l1_unstructured(model[0], "weight", 0.25)
    model(torch.randn(2, 8))
    return model


def pruned_and_removed():
    model = masked_by_torch()
    torch_prune.remove(model[0], "weight")
    return model


def shared_layer():
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, CLASSES))


def lazy_after_a_batch():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))
    model(torch.randn(2, 8))
    return model


def with_buffers(**buffers):
    model = mlp()
    for name, buffer in buffers.items():
        model[0].register_buffer(name, buffer)
    return model


class ExtraState(nn.Linear):
    def get_extra_state(self):
        return {"amax": [1.0, 2.0], "steps": 3}

    def set_extra_state(self, state):
        assert state == self.get_extra_state()


def transformer(kind, config, **settings):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)(
        vocab_size=20, num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=2, **settings,
    )  # fmt: skip
    return getattr(transformers, kind)(made).eval()


def bert_classifier():
    return transformer("BertForSequenceClassification", "BertConfig", num_labels=CLASSES)


VECTORS, TOKENS = (8,), "tokens"
INTEGERS = {
    str(dtype).removeprefix("torch."): torch.ones(3).to(dtype)
    for dtype in (torch.int8, torch.uint8, torch.uint16, torch.int64, torch.uint64, torch.bool, torch.float64)
}

ROWS = {
    "LSTM": (
        lambda: nn.Sequential(nn.LSTM(8, 8, 2, bidirectional=True, batch_first=True), Last(), nn.Linear(16, CLASSES)),
        (5, 8),
    ),
    "GRU": (lambda: nn.Sequential(nn.GRU(8, 8, batch_first=True), Last(), nn.Linear(8, CLASSES)), (5, 8)),
    "MultiheadAttention": (Attention, (5, 8)),
    "TransformerEncoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            Last(),
            nn.Linear(8, CLASSES),
        ),
        (5, 8),
    ),
    "U-Net": (UNet, (4, 8, 8)),
    "Conv3d": (
        lambda: nn.Sequential(nn.Conv3d(4, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)), (4, 3, 3, 3)
    ),
    "depthwise and grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(72, CLASSES)
        ),
        (8, 5, 5),
    ),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, CLASSES)), (6, 5)
    ),
    "EmbeddingBag": (Bag, TOKENS),
    "module used twice": (shared_layer, VECTORS),
    "tied embedding": (TiedTokens, TOKENS),
    "raw parameter": (RawParameter, VECTORS),
    "bfloat16": (lambda: mlp(dtype=torch.bfloat16), VECTORS),
    "float16": (lambda: mlp(dtype=torch.float16), VECTORS),
    "float64": (lambda: mlp(dtype=torch.float64), VECTORS),
    "weight_norm": (lambda: computed(parametrizations.weight_norm), VECTORS),
    "old weight_norm": (lambda: computed(nn.utils.weight_norm), VECTORS),
    "spectral_norm": (lambda: computed(parametrizations.spectral_norm), VECTORS),
    "masked by torch": (masked_by_torch, VECTORS),
    "masked and removed": (pruned_and_removed, VECTORS),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), VECTORS),
    "DataParallel": (lambda: nn.DataParallel(mlp()), VECTORS),
    "lazy after a batch": (lazy_after_a_batch, VECTORS),
    "extra state": (lambda: nn.Sequential(ExtraState(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)), VECTORS),
    "BERT classifier in a wrapper": (lambda: Logits(bert_classifier()), TOKENS),
    "BERT classifier": (bert_classifier, TOKENS),
    "BERT masked language model": (lambda: Logits(transformer("BertForMaskedLM", "BertConfig"), last=True), TOKENS),
    "GPT-2": (lambda: Logits(transformer("GPT2LMHeadModel", "GPT2Config"), last=True), TOKENS),
    "Llama": (
        lambda: Logits(transformer("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1), last=True), TOKENS
    ),
    "integer buffers": (lambda: with_buffers(empty=torch.zeros(0, 3), **INTEGERS), VECTORS),
    "infinite buffer": (
        lambda: with_buffers(mask=torch.full((4, 4), -torch.inf), nan=torch.tensor(torch.nan)), VECTORS
    ),
    "complex and float8 buffers": (
        lambda: with_buffers(c=torch.ones(2, dtype=torch.complex64), f=torch.ones(2).to(torch.float8_e4m3fn)), VECTORS
    ),
}  # fmt: skip

LEFT_OUT_BY_OBS = {
    "tied embedding": ["embed.weight"],
    "spectral_norm": ["0.parametrizations.weight.original"],
    "BERT masked language model": ["inner.bert.embeddings.word_embeddings.weight"],
    "GPT-2": ["inner.transformer.wte.weight"],
}
"""Weights whose output error is not known; each is named with the reason."""
LEFT_OUT_BY_2_4 = {"depthwise and grouped": ["0.weight"], "Conv1d": ["0.weight"]}
"""Weights whose inputs are no multiple of four."""


def examples(shape, dtype):
    g = torch.Generator().manual_seed(0)
    if shape == TOKENS:
        x = torch.randint(3, 20, (40, 6), generator=g)
    else:
        x = torch.randn(40, *shape, generator=g).to(dtype)
    return prunus.Split(x, torch.randint(0, CLASSES, (40,), generator=g))


def make(row):
    torch.manual_seed(0)
    factory, shape = ROWS[row]
    model = factory().eval()
    return model, examples(shape, next(p for p in model.parameters() if p.is_floating_point()).dtype)


def output(model, split):
    with torch.no_grad():
        made = model(split.inputs)
    return made if isinstance(made, torch.Tensor) else made.logits


def check_pruned(model, pruned, before, left_out=()):
    """Half of every weight but those is zero, everything else is accounted for, and other tensors are as before."""
    names = [name for name in before if name not in left_out]
    assert list(pruned.masks) == names
    parameters = dict(getattr(model, "_orig_mod", model).named_parameters())
    assert pruned.masks.keys() | pruned.skipped.keys() == parameters.keys()
    for name, mask in pruned.masks.items():
        weight = parameters[name]
        assert weight.dtype == before[name].dtype
        assert abs(int(mask.sum()) - 0.5 * mask.numel()) <= 0.5
        assert not weight[~mask].any()
    assert all(torch.equal(parameters[name], before[name]) for name in left_out)


@pytest.fixture(params=ROWS)
def row(request):
    return request.param


def copies(model):
    weights = prunable_weights(model)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def test_prune(row):
    model, split = make(row)
    before = copies(model)
    pruned = prunus.prune(model, 0.5)
    check_pruned(model, pruned, before)
    assert output(model, split).isfinite().all()
    # Nothing but biases, scales, and what is pruned on request is left out.
    assert all(
        re.search("bias|scale|pruned only where|a part of", reason) for reason in pruned.skipped.values()
    ), pruned.skipped


def test_obs(row):
    model, split = make(row)
    before = copies(model)
    pruned = prunus.prune(model, 0.5, criterion="obs", calibration=split)
    check_pruned(model, pruned, before, LEFT_OUT_BY_OBS.get(row, ()))
    assert output(model, split).isfinite().all()
    errors = [(r.error_zeroed, r.error_updated) for r in pruned.report.rows if r.error_zeroed is not None]
    assert len(errors) == len(pruned.masks)
    assert all(after <= zeroed * 1.01 for zeroed, after in errors)
    assert sum(after for _, after in errors) < 0.9 * sum(zeroed for zeroed, _ in errors)


def test_2_of_4_by_sparse_gpt(row):
    model, split = make(row)
    before = copies(model)
    view = layer_view(getattr(model, "_orig_mod", model), before)
    left_out = {*LEFT_OUT_BY_OBS.get(row, ()), *LEFT_OUT_BY_2_4.get(row, ())}
    if row == "masked by torch":  # which has groups of fewer than two weights
        with pytest.raises(PrunusError, match="a pruned weight cannot be restored"):
            prunus.prune(model, 0.5, criterion="sparse_gpt", scope="2:4", calibration=split)
        return
    pruned = prunus.prune(model, 0.5, criterion="sparse_gpt", scope="2:4", calibration=split)
    check_pruned(model, pruned, before, [name for name in before if name in left_out])
    for name, mask in view.to_view(pruned.masks).items():
        groups = mask.movedim(1, -1).unflatten(-1, (-1, 4))
        assert (groups.sum(-1) == 2).all(), name
    assert output(model, split).isfinite().all()


def test_compress(row, tmp_path):
    model, split = make(row)
    num_classes = output(model, split).shape[-1]
    data = prunus.Dataset("toy", split, split, split, tuple(map(str, range(num_classes))))
    training = prunus.Recipe(epochs=1, learning_rate=1e-3, batch_size=20)
    recipe = prunus.COMPRESSION_RECIPES["default"].replace(
        density=0.5, scope="layer", bits=3, rounds=1, schedule="one_shot",
        retrain=training, final_retrain=training, finetune=training,
    )  # fmt: skip
    path = tmp_path / "model.prunus"
    done = prunus.compress(model, path, data=data, preset=recipe)
    assert done.file_bytes == path.stat().st_size
    loaded = prunus.load(path, into=copy.deepcopy(model) if row != "compiled" else make(row)[0]).eval()
    torch.testing.assert_close(output(loaded, split), output(done.model.eval(), split), rtol=0, atol=0)
    for name, tensor in done.quantized.items():
        assert len(tensor.dense().unique()) <= 9, name


def test_file(row, tmp_path):
    model, split = make(row)
    prunus.save(model, tmp_path / "model.prunus")
    torch.manual_seed(1)
    other = ROWS[row][0]()
    other = prunus.load(tmp_path / "model.prunus", into=other).eval()
    for name, tensor in model.state_dict().items():
        value = other.state_dict()[name]
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(
                as_bytes(value + 0 if value.dtype == torch.float32 else value),
                as_bytes(tensor + 0 if tensor.dtype == torch.float32 else tensor),
            ), name
        else:
            assert value == tensor
    assert torch.equal(output(model, split), output(other, split))


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))


REFUSED = {
    "scripted": (lambda: torch.jit.script(mlp()), "Expected a module of Python.*script or trace it afterwards"),
    "traced": (lambda: torch.jit.trace(mlp(), torch.randn(2, 8)), "script or trace it afterwards"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(mlp()), "prune the model first, and quantize it afterwards"
    ),
    "lazy": (lazy, "pass one batch through the model first"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("call", ["prune", "obs", "2:4", "compress"])
def test_refused_models_say_what_to_do(kind, call):
    factory, advice = REFUSED[kind]
    model, split = factory(), examples(VECTORS, torch.float32)
    data = prunus.Dataset("toy", split, split, split, tuple("abcd"))
    calls = {
        "prune": lambda: prunus.prune(model, 0.5),
        "obs": lambda: prunus.prune(model, 0.5, criterion="obs", calibration=split),
        "2:4": lambda: prunus.prune(model, 0.5, criterion="sparse_gpt", scope="2:4", calibration=split),
        "compress": lambda: prunus.compress(model, data=data),
    }
    with pytest.raises(ModelError, match=advice) as refused:
        calls[call]()
    assert str(refused.value).count(". ") == 0


def test_files_of_refused_models(tmp_path):
    for kind in ("scripted", "traced"):
        model = REFUSED[kind][0]()
        prunus.save(model, tmp_path / kind)
        loaded = prunus.load(tmp_path / kind, into=mlp())
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(ContainerError, match="quantized or packed"):
        prunus.save(REFUSED["quantized"][0](), tmp_path / "file")
    with pytest.raises(ContainerError, match="run the module on a batch before"):
        prunus.save(lazy(), tmp_path / "file")
    assert not (tmp_path / "file").exists()
