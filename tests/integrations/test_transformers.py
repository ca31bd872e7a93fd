"""The callback of Hugging Face's Trainer, with the real Trainer and a small causal model; and accelerate."""

import shutil

import pytest
import torch

import prunus
from prunus.errors import CheckpointError, TrainingError

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from prunus.integrations.transformers import TransformersPruning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.randint(0, 40, (48, 12), generator=torch.Generator().manual_seed(0))
EXAMPLES = [{"input_ids": row, "labels": row} for row in TOKENS]


def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trainer(folder, callback, **settings):
    model = language_model()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=10, per_device_train_batch_size=8, learning_rate=1e-3, report_to=[],
        disable_tqdm=True, use_cpu=True, seed=1, **{"save_strategy": "no", "logging_strategy": "no", **settings},
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=[callback])


def callback(path=None):
    return TransformersPruning(
        0.4, rounds=3, every=2, path=path, criterion="random", exclude=["lm_head.*", "model.embed*"]
    )


def test_a_causal_model_is_pruned_by_the_schedule_and_written(tmp_path):
    pruning = callback(tmp_path / "model.prunus")
    run = trainer(tmp_path, pruning)
    run.train()
    masks = pruning.pruning.masks
    assert len(masks) == 7
    assert masks.verify() == 0
    assert masks.density == pytest.approx(0.4, abs=1e-3)
    assert not any("lm_head" in name for name in masks)
    loaded = prunus.load(tmp_path / "model.prunus", into=language_model())
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_training_that_resumes_continues_the_pruning(tmp_path):
    expected, again = callback(), callback()
    complete = trainer(tmp_path / "whole", expected, save_strategy="steps", save_steps=3)
    complete.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    resumed = trainer(tmp_path / "part", again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert again.pruning.num_steps == 10
    for name, tensor in complete.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    (tmp_path / "part" / "checkpoint-3" / "prunus.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Expected the state of the pruning in"):
        trainer(tmp_path / "part", callback()).train(
            resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3")
        )


def test_weights_of_an_earlier_step_are_not_written(tmp_path):
    class Restore(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            model.load_state_dict(language_model().state_dict())

    run = trainer(tmp_path, Restore())
    run.add_callback(callback(tmp_path / "model.prunus"))
    with pytest.raises(TrainingError, match="weights of an earlier step were loaded"):
        run.train()
    assert not (tmp_path / "model.prunus").exists()


def test_masks_hold_with_an_optimizer_of_accelerate(tmp_path):
    """Whose own hooks are never called; with gradients that are clipped and accumulated."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader(EXAMPLES, batch_size=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    masks = prunus.prune(accelerator.unwrap_model(model), 0.3, exclude=["lm_head.*"]).masks.attach(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert masks.verify() == 0
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True))
    accelerator.save_state(str(tmp_path))  # the optimizer's state is that of an optimizer without masks
