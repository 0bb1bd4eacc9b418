"""What one training step has to compute and to move, from the layers' shapes alone.

The count is nominal: each convolution as a direct one, 2 FLOP for a tap and pair of channels, the border's padding
included, so a lowering that saves multiplications (Winograd) gets no smaller count, and one that wastes some no larger.
Normalisation, activations and Adam are left out; they are below 1 % of the arithmetic.

A step takes eleven passes over a network, a pass being as much arithmetic as one forward:

  generator      1 forward, 1 backward to its kernels, 1 backward to its inputs                     = 3
  discriminator  3 forward (reals, fakes, fakes again after its update), 2 backward to its kernels,
                 3 backward to its inputs (twice for its own update, once for the generator's)      = 8

Nobody needs the gradient with respect to latents, nor, in the discriminator's own update, to images: the first layer
of the generator takes 2 passes, and that of the discriminator 6. PyTorch's eager step, the published one, takes one
more over the discriminator, for gradients of its kernels that the generator's update computes and drops.
"""

import dataclasses

TAPS = 16  # of a 4x4 kernel


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 4x4 convolution: numbers of one image, and how many passes a step takes over it."""

    name: str  # such as Generator/conv_1
    inputs: int  # numbers in one image's input
    outputs: int  # and in its output
    kernel: int  # numbers in the kernel
    positions: int  # where the kernel is laid: pixels of the smaller side
    passes: int

    def flops(self, batch: int) -> int:
        """FLOP of a step over `batch` images."""
        return self.passes * batch * 2 * self.positions * self.kernel

    def traffic(self, batch: int, itemsize: int = 4) -> int:
        """The least bytes: a pass, whichever, touches input, output and kernel once each."""
        return self.passes * itemsize * (batch * (self.inputs + self.outputs) + self.kernel)


def layers(image_size: int, *, maps: int = 64, latent: int = 100, channels: int = 3) -> list[Layer]:
    """Every convolution of both networks; `maps` is gen_features and dis_features."""
    doublings = image_size.bit_length() - 4
    widest = maps * 2**doublings
    generator = [Layer("Generator/conv_0", latent, 16 * widest, TAPS * latent * widest, 1, 2)]
    discriminator = []
    for i in range(doublings + 1):  # from the 4x4 maps to the image, up and down at once
        side = 4 * 2**i
        small, wide = side * side, widest // 2**i
        narrow = wide // 2 if i < doublings else channels
        shape = {"kernel": TAPS * wide * narrow, "positions": small}
        wide, narrow = small * wide, 4 * small * narrow
        generator.append(Layer(f"Generator/conv_{i + 1}", wide, narrow, passes=3, **shape))
        name = f"Discriminator/conv_{doublings - i}"
        discriminator.insert(0, Layer(name, narrow, wide, passes=8 if i < doublings else 6, **shape))
    collapse = f"Discriminator/conv_{doublings + 1}"
    discriminator.append(Layer(collapse, 16 * widest, 1, TAPS * widest, 1, 8))
    return generator + discriminator


def step_flops(image_size: int, batch: int, *, maps: int = 64, latent: int = 100, channels: int = 3) -> int:
    """FLOP of one training step."""
    return sum(layer.flops(batch) for layer in layers(image_size, maps=maps, latent=latent, channels=channels))
