"""One look at a training: its plots, and a page with a player of its pictures."""
