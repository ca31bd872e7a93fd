"""The groups of channels of known networks: how many, what they cover, and what is refused."""

import warnings

import torch
from torch import Tensor, nn

from benchmarks.timing import table
from prunus.models import MODELS
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.groups import Analysis

NETWORKS = ("resnet-50", "vgg-16-bn", "densenet-121", "mobilenet-v2", "vit-small")
SIZES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 100, "n_embd": 64, "n_layer": 4, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
TRANSFORMERS = {
    "BERT": ("BertForSequenceClassification", "BertConfig", SIZES),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "use_cache": False}),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2, "use_cache": False}),
}
"""Classes of transformers, with random weights and small sizes."""
LAYERS = ("Linear", "Conv2d", "Conv1D", "NonDynamicallyQuantizableLinear")


def coverage(model: nn.Module, analysis: Analysis, exact_only: bool) -> float:
    """The percentage of the weights of linear and convolutional layers that are in a group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # the first of tied names
    sizes: dict[str, int] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ in LAYERS and isinstance(weight, Tensor):
            sizes[names[id(weight)]] = weight.numel()
    groups = [group for group in analysis.groups if group.exact or not exact_only]
    members = {member.name for group in groups for member in group.members}
    return 100 * sum(size for name, size in sizes.items() if name in members) / sum(sizes.values())


def row(name: str, model: nn.Module, inputs: object) -> list[object]:
    analysis = analyze(model.eval(), inputs)
    exact = [group for group in analysis.groups if group.exact]
    channels = sum(group.channels for group in exact)
    operators = dict.fromkeys(part.refusal.operator for part in analysis.refused)
    return [
        name, f"{len(exact)} + {len(analysis.groups) - len(exact)}", f"{channels:,}",
        f"{coverage(model, analysis, True):.1f}", f"{coverage(model, analysis, False):.1f}", ", ".join(operators),
    ]  # fmt: skip


def run() -> str:
    warnings.simplefilter("ignore")
    rows = []
    for name in NETWORKS:
        size = 32 if name.startswith("vgg") else 224
        rows.append(row(name, MODELS[name](), torch.zeros(1, 3, size, size)))
    import transformers

    tokens = {"input_ids": torch.arange(16).reshape(2, 8)}
    for name, (architecture, config, sizes) in TRANSFORMERS.items():
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(getattr(transformers, config)(**sizes))
        rows.append(row(f"{name}, 4 layers of width 64", model, tokens))
    head = ["network", "groups, exact + inexact", "channels of exact groups", "% of weights in exact groups",
            "% with inexact groups", "refused at"]  # fmt: skip
    return table(head, rows)
