"""Batches for dual encoders, whose loss takes the other rows of a batch as negatives: which rows meet decides how hard
these are. Batch samplers for sentence-transformers' trainer (`args.batch_sampler`) or any loader."""

from corebatch.sampling.dual_encoders.ngame import Ngame, NgameBatches
from corebatch.sampling.dual_encoders.tas_balanced import TasBalanced, TasBalancedBatches

__all__ = ["Ngame", "NgameBatches", "TasBalanced", "TasBalancedBatches"]
