"""Files of models: weights, manifests, conversion, export."""
