"""Teach a small PyTorch network to read digits: python train_pytorch.py FOLDER.

Runs where PyTorch is, and imports nothing of this repository. Reads FOLDER/digits.npz (``image``
float32 [N, 1, 8, 8], ``labels``) and FOLDER/held_out.npz; writes the program digits.pt2, and
answers.npz, what it answers on the held-out digits by the file's name, float32 [M, 10].
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

_EPOCHS, _BATCH = 12, 32


def main(folder: Path) -> None:
    """Train, save, and note down the answers."""
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with np.load(folder / "digits.npz") as digits, np.load(folder / "held_out.npz") as held_out:
        images, labels = torch.from_numpy(digits["image"]), torch.from_numpy(digits["labels"])
        unseen = torch.from_numpy(held_out["image"])
    network = _network(torch.nn)
    _train(torch, network, images, labels)
    network.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "digits.pt2")
    answers: dict[str, Any] = {"digits.pt2": network(unseen).detach().numpy()}
    np.savez(folder / "answers.npz", **answers)


def _network(nn: Any) -> Any:
    class Digits(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
                *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                nn.MaxPool2d(2),
                *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
            )
            self.head = nn.Linear(128 * 4 * 4, 10)

        def forward(self, image: Any) -> Any:
            return self.head(self.body(image).flatten(1))

    return Digits()


def _train(torch: Any, network: Any, images: Any, labels: Any) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images)).split(_BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
