"""Shares of sources found by Bayesian optimisation over short runs (`corebatch mixture search`)."""
