"""Sources of images, the cache of decoded pixels, and the pipeline that feeds them to the device."""
