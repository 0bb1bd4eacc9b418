"""Evaluation of a generator: the sets of images, the protocol, and the page that shows the result."""
