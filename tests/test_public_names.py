import inspect

import vit_ratio_opt as vro


def test_public_names_are_no_modules():
    """A module of a public name would hide it from the second use on."""
    for name in vro.__all__:
        getattr(vro, name)
        assert not inspect.ismodule(getattr(vro, name)), name
