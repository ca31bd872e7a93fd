"""A sweep of one-shot tickets in plain PyTorch, without prunus: the peer of the benchmark `tickets`.

    python benchmarks/baseline_script.py DATA.npz EPOCHS WORKERS

A Dataset that converts an image to a tensor, a DataLoader, Adam, weights multiplied by the mask after every step, an
evaluation of the validation split every 100 steps, one run after the other, PyTorch's default number of threads. Prints
JSON.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

try:
    from PIL import Image
except ImportError:
    Image = None

REPLICATES, DENSITY, EVERY = 2, (0.8**11, 0.8**11, 0.9**11), 100


class Images(Dataset):
    """Like torchvision's MNIST: a PIL image of the stored bytes, then a float tensor, then normalized."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if Image is not None:
            image = np.array(Image.fromarray(image))
        tensor = torch.from_numpy(image).unsqueeze(0).float() / 255
        return (tensor - 0.1307) / 0.3081, int(self.labels[index])


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


def layers(model: LeNet) -> list[nn.Linear]:
    return [model.fc1, model.fc2, model.fc3]


@torch.no_grad()
def evaluate(model: LeNet, loader: DataLoader) -> tuple[float, float]:
    model.eval()
    loss, right, n = 0.0, 0, 0
    for inputs, labels in loader:
        outputs = model(inputs)
        loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
        right += (outputs.argmax(1) == labels).sum().item()
        n += len(labels)
    model.train()
    return loss / n, 100 * right / n


def copy(model: LeNet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(
    model: LeNet, loaders: dict[str, DataLoader], epochs: int, masks: list[torch.Tensor] | None = None
) -> int:
    """Train with evaluations; evaluate the test split at the best step and at the end. Return the number of steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    criterion = nn.CrossEntropyLoss()
    step, best, best_state = 0, evaluate(model, loaders["validation"])[0], copy(model)
    for _ in range(epochs):
        for inputs, labels in loaders["train"]:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()
            if masks is not None:
                with torch.no_grad():
                    for layer, mask in zip(layers(model), masks, strict=True):
                        layer.weight.mul_(mask)
            step += 1
            if step % EVERY == 0:
                loss, _ = evaluate(model, loaders["validation"])
                if loss < best:
                    best, best_state = loss, copy(model)
    evaluate(model, loaders["test"])
    final = copy(model)
    model.load_state_dict(best_state)
    evaluate(model, loaders["test"])
    model.load_state_dict(final)
    return step


def masks_from(model: LeNet, criterion: str) -> list[torch.Tensor]:
    masks = []
    for layer, density in zip(layers(model), DENSITY, strict=True):
        weight = layer.weight.detach()
        score = {"large_final": weight.abs(), "small_final": -weight.abs(), "random": torch.rand_like(weight)}
        keep = score[criterion].flatten().topk(round(density * weight.numel())).indices
        mask = torch.zeros(weight.numel())
        mask[keep] = 1
        masks.append(mask.view_as(weight))
    return masks


def main(path: str, epochs: int, workers: int) -> None:
    data = np.load(path)
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    splits = {
        name: Images(data[f"{name}_images"], data[f"{name}_labels"])
        for name in ("train", "validation", "test")
    }
    loaders = {
        "train": DataLoader(splits["train"], batch_size=60, shuffle=True, **more),
        "validation": DataLoader(splits["validation"], batch_size=1000, **more),
        "test": DataLoader(splits["test"], batch_size=1000, **more),
    }
    seconds, steps = {"dense": 0.0, "tickets": 0.0}, 0
    for replicate in range(REPLICATES):
        torch.manual_seed(replicate)
        model = LeNet()
        initial = copy(model)
        started = time.perf_counter()
        steps += train(model, loaders, epochs)
        seconds["dense"] += time.perf_counter() - started
        final = copy(model)
        started = time.perf_counter()
        for criterion in ("large_final", "small_final", "random"):
            model.load_state_dict(final)
            masks = masks_from(model, criterion)
            model.load_state_dict(initial)
            with torch.no_grad():
                for layer, mask in zip(layers(model), masks, strict=True):
                    layer.weight.mul_(mask)
            steps += train(model, loaders, epochs, masks)
        seconds["tickets"] += time.perf_counter() - started
    cpu = time.process_time()
    print(
        json.dumps(
            {
                "steps": steps,
                "seconds": seconds,
                "cpu": cpu,
                "pil": Image is not None,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
