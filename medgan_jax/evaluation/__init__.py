"""Judging a generator: sets of images, the protocol, and the page that shows the result."""
