"""Image metrics: `paired` compares two images, `distribution` compares two sets of images."""
