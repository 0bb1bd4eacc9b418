"""`python -m medgan_jax.torch_import FILE --out=FOLDER`: the former name of `medgan import-torch`."""

import sys

from medgan_jax.cli import main

if __name__ == "__main__":
    main(["import-torch", *sys.argv[1:]])
