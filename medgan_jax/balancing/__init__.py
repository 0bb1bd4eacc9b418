"""Training sets of real and generated images with the counts asked for."""
