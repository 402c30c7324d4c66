"""What is known of a causal language model's inside: its forward, head, projections, rows and costs."""
