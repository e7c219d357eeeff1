"""16-bit floats as they are read and written: all of them, in every instruction set's vectors."""

from __future__ import annotations

import torch
from instruction_sets import capability_in_use, each_capability, run_under

import genkern


def mixed(real: torch.Tensor, fake: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The product of a weight and a number, whose rounding back is a tie for many."""
    with genkern.use_backend("native"):
        return genkern.gan.interpolate(real, fake, noise=weights)


def check(dtype: torch.dtype) -> None:
    """Every number of a dtype, times weights: the float32 result, rounded once by torch."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    # A row longer than a chunk, whose last chunk is no whole number of vectors.
    real = patterns[:-5].expand(4, -1)
    weights = torch.tensor([1.0, 0.75, 1.0078125, 0.3]).to(dtype)
    fake = torch.zeros_like(real)
    got = mixed(real, fake, weights)
    want = mixed(real.float(), fake.float(), weights.float()).to(dtype)
    number = ~want.isnan()
    assert torch.equal(got.isnan(), ~number)
    assert torch.equal(got.view(torch.int16)[number], want.view(torch.int16)[number])


def main() -> None:
    """Prints the instruction set that was checked."""
    check(torch.bfloat16)
    check(torch.float16)
    print(capability_in_use())


@each_capability
def test_every_number_is_read_and_rounded_as_torch_does(capability: str) -> None:
    run_under(capability, __file__)


if __name__ == "__main__":
    main()
