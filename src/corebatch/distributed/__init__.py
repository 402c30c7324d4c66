"""Ranks: what they tell each other, rows that move, who is missing."""
