"""Other systems: what trains, samples and evaluates works without this folder."""
