"""`python -m medgan_jax COMMAND ...`: the same as `medgan`."""

from medgan_jax.cli import main

if __name__ == "__main__":
    main()
