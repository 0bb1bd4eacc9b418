"""Array operations with more than one lowering: which is fast depends on the backend."""
