"""The cone, attend-infer-repeat and the zoo of autoencoders: numbers that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import varax as vx
from varax.models import air, cone, vae, vae_zoo

matplotlib.use("Agg")


def test_evidence_of_the_cone():
    """By quadrature over the radius: x^2 + y^2 is exponential with mean 200."""
    r2 = np.linspace(1e-6, 40, 400001)
    sd = 0.1 + r2 / 100
    p = np.exp(-r2 / 200) / 200 * np.exp(-((cone.Z - r2) ** 2) / 2 / sd**2) / sd
    total = np.trapezoid(p, r2) / np.sqrt(2 * np.pi)
    assert abs(np.log(total) - cone.EVIDENCE) < 1e-4


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("name", "within"),
    [("ELBO", 0.02), ("HVI", 0.02), ("IWHVI(5)", 0.02), ("ELBO, exact ring", 0.05)],
)
def test_a_bound_of_the_cone_reaches_its_optimum(name, within):
    phi = cone.fit(name, 1500, 64, jax.random.key(0), progress=False)
    value, error = cone.evaluate(name, phi, 20, jax.random.key(1))
    optimum = cone.BOUNDS[name][3] or cone.EVIDENCE
    assert abs(value - optimum) < within + 5 * error
    assert value < cone.EVIDENCE + 5 * error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ELBO", "IWELBO(5)", "DIWHVI(5, 5)", "DIWHVI(20, 50)"])
def test_every_bound_of_the_cone(name):
    phi = cone.fit(name, 4000, 64, jax.random.key(0), progress=False)
    value, error = cone.evaluate(name, phi, 400, jax.random.key(1))
    assert abs(value - cone.BOUNDS[name][3]) < {"ELBO": 0.01}.get(name, 0.02) + 3 * error


@pytest.mark.slow
def test_the_cones_table_and_picture(tmp_path, capsys):
    options = ["--steps", "20", "--evaluate", "1", "--bounds", "ELBO", "IWHVI(5)"]
    found = cone.main([*options, "--out", str(tmp_path)])
    assert set(found) == {"ELBO", "IWHVI(5)"}
    assert "log p(z = 5) = -5.32323" in capsys.readouterr().out
    assert (tmp_path / "cone.png").stat().st_size > 5000


# ---- attend, infer, repeat


def small(steps):
    images, counts = air.canvases(np.random.default_rng(0).random((20, 8, 8)), 6, 3)
    return air.Nets(jax.random.key(0)), jnp.asarray(images), counts


def test_canvases_hold_their_digits():
    digit = np.ones((1, 8, 8))
    images, counts = air.canvases(digit, 300, 0)
    np.testing.assert_array_equal(images.sum((1, 2)), counts * 64)  # nothing overlaps
    assert set(counts) == {0, 1, 2}


def test_a_sprite_is_placed_where_it_is_attended():
    sprite = jnp.asarray(np.random.default_rng(0).random((8, 8)), float)
    where = jnp.array([0.0, 0.0, -4 / 9.5])  # whole pixels: columns 6 to 13, rows 2 to 9
    canvas = air.place(sprite, where, air.CANVAS)
    np.testing.assert_allclose(canvas[2:10, 6:14], sprite, atol=1e-5)
    np.testing.assert_allclose(air.attend(canvas, where, 8), sprite, atol=1e-5)
    np.testing.assert_allclose(canvas.sum(), sprite.sum(), rtol=1e-5)


def test_enumeration_runs_lane_by_lane():
    nets, images, _ = small(0)
    objective, estimators = air.RUNS["enum"]
    report = vx.check(lambda x: objective(nets, x), images[:3].astype(int), estimators=estimators)
    for t in range(air.STEPS):
        assert "3 elements apart" in report[f"present{t}"].credit
        assert report[f"present{t}"].runs == 2


@pytest.mark.slow
def test_estimators_of_counting_agree_in_the_mean():
    """The gradient in the guide's first decision, of one canvas."""
    nets, images, _ = small(0)

    def slope(name, draws):
        objective, estimators = air.RUNS[name]

        def of(bias):
            head = nets.head.layers[-1]
            moved = head.bias.at[0].add(bias)
            other = eqx.tree_at(lambda n: n.head.layers[-1].bias, nets, moved)
            return objective(other, images[:1])

        one = jax.jit(jax.vmap(lambda key: vx.grad(of, estimators=estimators)(key, 0.0)))
        found = np.asarray(one(jax.random.split(jax.random.key(1), draws)), float)
        return found.mean(), found.std() / np.sqrt(draws)

    exact, error = slope("enum", 500)
    for name in ("loo", "hybrid"):
        value, other = slope(name, 2000)
        assert abs(value - exact) < 5.3 * np.hypot(error, other)


@pytest.mark.slow
def test_air_main(tmp_path, capsys):
    options = ["--steps", "3", "--canvases", "200", "--estimators", "enum"]
    found = air.main([*options, "--out", str(tmp_path)])
    assert 0 <= found["enum"] <= 1
    assert "count accuracy" in capsys.readouterr().out
    assert (tmp_path / "air.png").stat().st_size > 5000


def test_multi_mnist_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("VARAX_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"set VARAX_DATA(.|\n)*multi_mnist_50x50\.npz"):
        air.main(["--data", "multi_mnist"])
    (tmp_path / "multi_mnist").mkdir()
    arrays = {f"{s}_x": np.zeros((9, 50, 50), np.uint8) for s in ("train", "test")}
    arrays |= {f"{s}_count": np.arange(9) % 3 for s in ("train", "test")}
    np.savez(tmp_path / "multi_mnist" / "multi_mnist_50x50.npz", **arrays)
    train, counts, _, _ = air.multi_mnist()
    assert train.shape == (9, 50, 50) and train.dtype == np.float32 and counts.max() == 2


@pytest.mark.slow
def test_air_counts(tmp_path):
    found = air.main(["--steps", "12000", "--out", str(tmp_path)])
    assert found["enum"] > 0.95


# ---- the zoo


@pytest.mark.slow
def test_objectives_of_the_zoo(tmp_path):
    rows = vae_zoo.main(["--steps", "20", "--objectives", "SWAE", "--out", str(tmp_path)])
    for row in rows.values():
        assert row.iwae > row.elbo and 0 <= row.active <= vae.LATENT
    assert (tmp_path / "vae_zoo.png").stat().st_size > 5000


@pytest.mark.slow
def test_every_objective_of_the_zoo_has_a_gradient():
    nets, images = vae.init(jax.random.key(0)), jnp.asarray(vae.data()[0][:10])
    for name, objective in vae_zoo.OBJECTIVES.items():
        value, grads = jax.jit(
            lambda key, images, f=objective: vx.value_and_grad(lambda n: f(n, images))(key, nets)
        )(jax.random.key(0), images)
        leaves = [x for x in jax.tree.leaves(grads) if x is not None]
        assert np.isfinite(value) and all(np.isfinite(x).all() for x in leaves), name
        assert sum(float(abs(x).sum()) for x in leaves) > 0


def test_terms_of_the_zoo_are_the_elbo():
    """With weights of 1 the decomposition is the ELBO at the same draw."""
    nets, images = vae.init(jax.random.key(0)), jnp.asarray(vae.data()[0][:10])

    def gap():
        c = vae_zoo.codes(nets, images)
        law = vx.dist.Normal(c.mean, c.sd)
        terms = vx.objectives.decompose_kl(law, c.z, vae_zoo.PRIOR, 10)
        elbo = (c.log_likelihood - c.kl).mean()
        return elbo - vx.objectives.tc_elbo(c.log_likelihood, terms, beta=1.0)

    assert abs(vx.seed(gap)(jax.random.key(0))) < 1e-2
