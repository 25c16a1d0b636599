"""The equations of the handout: tensors in, tensors out. No file, global or model loading."""
