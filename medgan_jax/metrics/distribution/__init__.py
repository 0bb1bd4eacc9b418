"""How far a set of generated images is from a set of real ones, with intervals that hold for small sets."""
