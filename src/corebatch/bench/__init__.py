"""Measuring on a user's own model and data: `corebatch bench` and `corebatch compare`.

gradients/ has one step's estimate, steps/ one step's cost, runs/ whole trainings.
"""
