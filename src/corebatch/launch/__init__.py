"""From checked settings to a trained model in its folder: everything up to the first step, and after the last one."""
