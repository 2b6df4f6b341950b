"""`python -m varax.models.inference_gym`."""

from .run import main

if __name__ == "__main__":
    main()
