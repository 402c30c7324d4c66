"""A YAML file and `--key value` pairs become checked settings, and settings become a model, data and arguments."""
