"""Measured claims: `python -m benchmarks --help`. Ours and the peer, in turns, on the machine at hand."""
