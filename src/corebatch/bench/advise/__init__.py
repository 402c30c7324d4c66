"""What limits a run, measured in minutes on its own model and data: `corebatch advise`."""
