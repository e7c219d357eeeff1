"""The public documentation: its examples run, and every function says what it must."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import warnings

import pytest

import genkern
import genkern.testing

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(genkern.__path__, "genkern.")
    if not name.startswith(("genkern._triton", "genkern.lib")) and not name.endswith("__main__")
]
PUBLIC_MODULES = (
    genkern.random,
    genkern.vae,
    genkern.diffusion,
    genkern.gan,
    genkern.testing,
    genkern,
)

# What a module needs that is not a requirement of genkern.
PEERS = {
    "genkern.integrations.diffusers": "diffusers",
    "genkern.integrations.ddpm_pytorch": "denoising_diffusion_pytorch",
    "genkern.integrations.pythae": "pythae",
}

FAMILIES = (
    "genkern.random",
    "genkern.vae",
    "genkern.diffusion",
    "genkern._schedules",
    "genkern._sample",
    "genkern.gan",
)


def _public():
    for module in PUBLIC_MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                yield pytest.param(thing, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("name", ["genkern", *MODULES])
def test_examples_run(name):
    if name in PEERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(PEERS[name], reason=f"{PEERS[name]} is not installed")
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_every_public_name_is_there():
    for module in PUBLIC_MODULES:
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name)


@pytest.mark.parametrize("thing", list(_public()))
def test_required_parts(thing):
    text = inspect.getdoc(thing)
    assert text
    first = text.splitlines()[0]
    assert first.endswith((".", "?")) and len(first) <= 100
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return
    parameters = inspect.signature(thing).parameters
    if parameters:
        assert "Args:" in text
        documented = text[text.index("Args:") :]
        for name in parameters:
            assert f"{name}:" in documented, name
    if not inspect.isclass(thing) and inspect.signature(thing).return_annotation not in (
        "None",
        "AbstractContextManager[None]",
    ):
        assert "Returns:" in text or not parameters
    if thing.__module__ in FAMILIES:
        assert "Example:" in text and ">>>" in text
        assert "Raises:" in text


_VAE = ("rsample", "kl", "rsample_kl", "bernoulli_nll", "gaussian_nll", "elbo_loss")
MATHEMATICS = [getattr(genkern.vae, name) for name in _VAE] + [
    getattr(genkern.diffusion, name) for name in genkern.diffusion.__all__ if name.islower()
]


@pytest.mark.parametrize("thing", MATHEMATICS, ids=lambda thing: thing.__name__)
def test_the_mathematics_names_its_source(thing):
    text = inspect.getdoc(thing)
    assert "arXiv:" in text or thing.__name__ == "rsample_kl"
    assert "Note:" in text


@pytest.mark.parametrize("name", genkern.gan.__all__)
def test_the_mathematics_of_gans_names_its_source(name):
    assert "arXiv:" in inspect.getdoc(getattr(genkern.gan, name))
