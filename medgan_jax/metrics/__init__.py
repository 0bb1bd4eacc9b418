"""How good images are: paired metrics of two images, and distances between sets of them."""
