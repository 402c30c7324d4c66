"""The cost of one step: `corebatch bench step`."""
