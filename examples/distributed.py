"""Data-parallel training on several processes or machines: PyTorch's DistributedDataParallel around a converted model.

    torchrun --standalone --nproc-per-node 2 examples/distributed.py

On several machines, the same program on each of them (PyTorch's documentation of torchrun tells the rest)::

    torchrun --nnodes 4 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29400 examples/distributed.py

Handwritten digits (scikit-learn's) are split among the processes; each computes the gradients of its part with konv, PyTorch
averages them (gloo, on CPUs). Started without torchrun it trains alone, on the same batches.
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import konv.torch
from konv.info import usable_cores


def network() -> nn.Module:
    """A small ConvNet on 8 x 8 images; the same weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4 * 4, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--save-gradients", metavar="FILE", help="write the first step's gradients to a file")
    arguments = parser.parse_args()

    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
        torch.set_num_threads(max(1, usable_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    model = network()
    conversion = konv.torch.convert(model)  # before DistributedDataParallel takes the model
    if rank == 0:
        print(conversion)
    trained = DistributedDataParallel(model) if processes > 1 else model

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = slice(0, 1500), slice(1500, None)
    optimizer = torch.optim.Adam(trained.parameters(), lr=2e-3)
    for epoch in range(arguments.epochs):
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(epoch))
        for start in range(0, 1500 - arguments.batch_size + 1, arguments.batch_size):
            own = order[start : start + arguments.batch_size][rank::processes]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(images[train][own]), labels[train][own])
            loss.backward()
            if arguments.save_gradients and rank == 0 and epoch == start == 0:
                torch.save([parameter.grad.clone() for parameter in model.parameters()], arguments.save_gradients)
            optimizer.step()
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == labels[test]).double().mean().item()
        if rank == 0:
            print(f"epoch {epoch + 1}: test accuracy {right:.2%}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
