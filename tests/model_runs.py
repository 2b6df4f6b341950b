"""How the tests run a model of the library."""

import matplotlib

matplotlib.use("Agg")


def run(model, tmp_path, *options):
    """A model's numbers, by its own `main`; it writes a picture."""
    found = model.main([*map(str, options), "--out", str(tmp_path)])
    name = model.__name__.rpartition(".")[2]
    assert matplotlib.image.imread(tmp_path / f"{name}.png").shape[1] > 200
    return found
