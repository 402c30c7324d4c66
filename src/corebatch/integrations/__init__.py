"""Selection inside programs that train models from a configuration of their own: one file a host."""
