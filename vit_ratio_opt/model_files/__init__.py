"""Files of models: the tensors that any container holds."""
