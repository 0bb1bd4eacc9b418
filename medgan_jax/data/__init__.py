"""Image sets: where they come from, the cache of decoded pixels, and the batches that reach the devices."""
