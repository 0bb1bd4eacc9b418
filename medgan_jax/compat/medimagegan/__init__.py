"""MedImageGAN (PyTorch): its control files, output files, published scores and experiments."""
