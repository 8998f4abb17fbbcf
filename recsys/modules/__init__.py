"""Parts that models are composed of: tensors in, tensors out."""
