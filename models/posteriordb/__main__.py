"""`python -m varax.models.posteriordb`."""

from .run import main

if __name__ == "__main__":
    main()
