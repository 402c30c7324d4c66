"""What a type checker says of it: the type of a choice, of a version, and one error, a budget that is no number."""

import torch

import corebatch

features = torch.randn(16, 4)
reveal_type(corebatch.select(features, 4))  # noqa: F821
reveal_type(corebatch.__version__)  # noqa: F821
corebatch.select(features, "four")
