"""Groups of the networks of Hugging Face, with random weights and small sizes."""

import numpy as np
import pytest
import torch
from channel_checks import check_channels, covered_fraction, exact_channels

from prunus.errors import ModelError
from prunus.pruning.structured.analysis import analyze

transformers = pytest.importorskip("transformers")

WORDS = {"input_ids": torch.randint(0, 100, (2, 8), generator=torch.Generator().manual_seed(0))}
SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "attn_implementation": "sdpa"}
DECODER = {**SIZES, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "use_cache": False}
IMAGE = {key: value for key, value in SIZES.items() if key != "vocab_size"} | {
    "image_size": 32,
    "patch_size": 8,
}


def make(architecture, config, **sizes):
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


NETWORKS = {
    "bert": lambda: (make("BertModel", "BertConfig", **SIZES), WORDS),
    "gpt-2": lambda: (make("GPT2LMHeadModel", "GPT2Config", bos_token_id=1, eos_token_id=2, **GPT2), WORDS),
    "llama": lambda: (make("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **DECODER), WORDS),
    "qwen3": lambda: (
        make("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=8, **DECODER),
        WORDS,
    ),
    "gpt-neox": lambda: (make("GPTNeoXForCausalLM", "GPTNeoXConfig", **DECODER), WORDS),
    "vit": lambda: (make("ViTForImageClassification", "ViTConfig", **IMAGE), torch.randn(2, 3, 32, 32)),
}
HEADS = {"llama": 2, "qwen3": 2}
"""The removable heads of each of two layers: key and value heads with their queries; 4 in other networks."""


def check_network(name, channels):
    model, inputs = NETWORKS[name]()
    analysis = analyze(model, inputs)
    sizes = sorted(group.channels for group in analysis.groups if group.exact)
    mlp = 128 if name == "gpt-2" else 64
    embedding_factors = [32] if name in ("bert", "vit") and 32 in sizes else []
    assert sizes == sorted([HEADS.get(name, 4), mlp] * 2 + embedding_factors)
    removable = exact_channels(analysis)
    order = np.random.default_rng(0).permutation(len(removable))[:channels]
    check_channels(model, analysis, [removable[i] for i in order])
    return covered_fraction(model, analysis)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt-2", "llama"])
def test_groups_of_transformers_are_heads_and_hidden_units(name):
    assert check_network(name, 4) >= 0.8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_sampled_channels_of_transformers_are_right(name):
    # Patches, embeddings and classifiers are not covered; they are large in networks as small as these.
    assert check_network(name, 200) >= (0.7 if name == "vit" else 0.8)


@pytest.mark.filterwarnings("ignore")
def test_a_cache_among_the_outputs_is_refused_with_the_setting_that_turns_it_off():
    model = make("LlamaForCausalLM", "LlamaConfig", **{**DECODER, "use_cache": True})
    with pytest.raises(ModelError, match=r"DynamicCache.*; .* set model\.config\.use_cache = False\."):
        analyze(model, WORDS)
    model.config.use_cache = False
    assert analyze(model, WORDS).groups


OTHERS = {  # sizes, the kind of inputs, and the number of exact groups
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "pixels", 2),
    "Swin": (
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "pixels", 8,
    ),
    "RegNet": ({"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8}, "pixels", 11),
    "T5": (
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False},
        "both", 7,
    ),
    "Mamba": (
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "use_cache": False},
        "words", 3,
    ),
}  # fmt: skip
INPUTS = {"words": WORDS, "both": {**WORDS, "decoder_input_ids": WORDS["input_ids"]}}
INPUTS["pixels"] = {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_channels_of_other_architectures_are_right(name):
    sizes, inputs, groups = OTHERS[name]
    model = make(f"{name}Model", f"{name}Config", **sizes)
    analysis = analyze(model, INPUTS[inputs])
    removable = exact_channels(analysis)
    order = np.random.default_rng(0).permutation(len(removable))[:12]
    check_channels(model, analysis, [removable[i] for i in order])
    assert sum(group.exact for group in analysis.groups) == groups
