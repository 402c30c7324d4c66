"""What selectors compute with: blocks of many rows, distances, probabilities, compiled loops."""
