"""What `medgan` can do: one module a command, each with `main()`."""
