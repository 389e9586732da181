import torch
from torch import nn

from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import cross_entropy_loss, inference_cost, training_macs
from vae_edge.model import create_config


class Known(nn.Module):
    """Four 3×3 filters with stride 2 on 28×28 pixels, ten classes; and a branch that nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last, self.unused = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(784, 10), nn.Linear(784, 99)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.convolution(image).relu().flatten(1)
        self.unused(features)
        return self.last(features)


def test_counts_are_those_of_a_network_counted_by_hand():
    convolution, last = 14 * 14 * 4 * 9, 784 * 10
    cost = inference_cost(Known(), torch.zeros(1, 1, 28, 28))
    assert cost.macs == convolution + last
    assert cost.parameters == 4 * 9 + 4 + 784 * 10 + 10
    macs = training_macs(Known(), lambda network, pixels: network(pixels).sum(), 28, 1)
    # forward, and to the weights; to the input too, but for the first layer. The unused branch runs forward.
    assert macs == 2 * convolution + 3 * last + 784 * 99


def test_counting_leaves_the_network_as_it_was():
    network = baselines.cnn(create_config("tiny"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training_macs(network, cross_entropy_loss, 28, 1)
    inference_cost(network, torch.zeros(1, 1, 28, 28))
    assert network.training and all(torch.equal(before[name], t) for name, t in network.state_dict().items())
